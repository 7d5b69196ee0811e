"""Fields of a request: what is taken, what is refused and how it says so."""

from __future__ import annotations

import base64
import json
import tracemalloc

import numpy as np
import pytest

from nvlm_trt.errors import ImageRejected, RequestError
from nvlm_trt.serving.fields import NVLM_FIELDS, refuse_unknown
from nvlm_trt.serving.images import image_file
from nvlm_trt.serving.requests import Conversation, parse_messages, parse_question, parse_stop_words


def said(*messages: tuple[str, str]) -> str:
    return json.dumps([{"role": role, "content": content} for role, content in messages])


def test_a_question_alone_takes_the_defaults(spec, text):
    question = parse_question({"text_input": text("Why?")}, spec)
    assert question.conversation == Conversation("Why?")
    assert question.images == ()
    assert question.max_tiles == 6
    assert question.exif_orientation
    assert not question.stream
    assert question.sampling.max_tokens == 50
    assert question.sampling.greedy


def test_an_empty_question_is_a_question(spec, text):
    assert parse_question({"text_input": text("")}, spec).conversation.question == ""


def test_a_conversation(spec, text):
    messages = said(("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c"))
    question = parse_question({"messages": text(messages)}, spec)
    assert question.conversation == Conversation("c", (("a", "b"),), "Be brief.")


def test_the_system_message_can_be_a_field(spec, text):
    tensors = {"messages": text(said(("user", "a"))), "system_message": text("Be kind.")}
    assert parse_question(tensors, spec).conversation.system == "Be kind."


def test_two_system_messages_are_refused(spec, text):
    tensors = {"messages": text(said(("system", "x"), ("user", "a"))), "system_message": text("y")}
    with pytest.raises(RequestError, match="two system messages"):
        parse_question(tensors, spec)


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ("[", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("{}", "not a list"),
        ("[]", "not a list"),
        ('["x"]', "another shape"),
        ('[{"role": "user", "content": "x", "name": "y"}]', "another shape"),
        ('[{"role": "user", "content": [{"type": "text"}]}]', "is no text"),
        ('[{"role": "user", "content": "\\ud800"}]', "surrogate"),
        (said(("user", "a"), ("user", "b")), "do not alternate"),
        (said(("assistant", "a")), "do not alternate"),
        (said(("user", "a"), ("assistant", "b")), "does not end with a question"),
        (said(("system", "a")), "does not end with a question"),
    ],
)
def test_other_messages_are_refused(messages, fault):
    with pytest.raises(RequestError, match=fault):
        parse_messages(messages)


def test_text_that_is_not_utf8_is_refused(spec, text):
    with pytest.raises(RequestError, match="not UTF-8"):
        parse_question({"text_input": text(b"\xff\xfe")}, spec)


def test_text_beyond_all_measure_is_refused_before_it_is_read(spec, text):
    with pytest.raises(RequestError, match="too long"):
        parse_question({"text_input": text(b"x" * 5_000_000)}, spec)


@pytest.mark.parametrize("count", [0, 2])
def test_a_field_of_one_value_takes_one_value(spec, text, count):
    with pytest.raises(RequestError, match="does not hold one value"):
        parse_question({"text_input": text("x"), "top_k": np.zeros(count, np.int32)}, spec)
    with pytest.raises(RequestError, match="does not hold one text"):
        parse_question({"text_input": text(*["x"] * count)}, spec)


def test_more_images_than_the_limit_are_refused(spec, text):
    with pytest.raises(RequestError, match="too many images; seen: 3; expected: at most 2"):
        parse_question({"text_input": text("x"), "image_bytes": text("a", "b", "c")}, spec)


def test_stop_words(text):
    assert parse_stop_words({"stop_words": text("a", "b")}) == ("a", "b")
    assert parse_stop_words({}) == ()
    with pytest.raises(RequestError, match="stop"):
        parse_stop_words({"stop_words": text("a", "")})
    with pytest.raises(RequestError, match="stop"):
        parse_stop_words({"stop_words": text(*["a"] * 17)})


def test_unknown_fields_are_refused_with_the_nearest_name():
    with pytest.raises(RequestError, match="seen: temprature; did you mean temperature"):
        refuse_unknown(["temprature"], NVLM_FIELDS)
    with pytest.raises(RequestError, match="known fields: text_input"):
        refuse_unknown(["qqq"], NVLM_FIELDS)


def test_an_unknown_name_as_long_as_a_body_costs_no_more_than_a_short_one():
    name = "q" * 1_000_000
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match=f"seen: {'q' * 64};"):
            refuse_unknown([name], NVLM_FIELDS)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_parameters_of_the_protocol_are_no_fields():
    refuse_unknown(["id", "priority", "triton_final_response", "text_input"], NVLM_FIELDS)


PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
ENCODED = base64.b64encode(PNG)


@pytest.mark.parametrize(
    "field", [PNG, ENCODED, b"data:image/png;base64," + ENCODED, ENCODED[:40] + b"\n" + ENCODED[40:] + b"\n"]
)
def test_a_file_is_taken_raw_and_in_base64(field):
    assert image_file(field, 1000) == PNG


@pytest.mark.parametrize("field", [b"", b"hello, this is text", b"abc", "漢字".encode()])
def test_what_is_neither_is_left_for_the_image_reader_to_refuse(field):
    assert image_file(field, 1000) == field


@pytest.mark.parametrize(
    ("field", "fault"),
    [
        (b"data:text/plain,hello", "no image in base64"),
        (b"data:image/png;base64", "no image in base64"),
        (b"data:image/png;base64,????", "damaged"),
        (b"data:image/png;base64," + b"A" * 2000, "too large"),
    ],
)
def test_other_data_uris_are_refused(field, fault):
    with pytest.raises(ImageRejected, match=fault):
        image_file(field, 1000)


def test_base64_beyond_the_limit_is_not_decoded():
    field = b"A" * 4000
    assert image_file(field, 1000) is field

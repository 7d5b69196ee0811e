"""Messages of OpenAI's API become turns of the model's, and every image gets its place."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from nvlm_trt.gateway.conversation import Conversation, conversation_of
from nvlm_trt.gateway.errors import ApiError
from nvlm_trt.gateway.schema import Message

MESSAGES = TypeAdapter(list[Message])


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def read(*turns: tuple[str, Any]) -> Conversation:
    return conversation_of(MESSAGES.validate_python([{"role": role, "content": said} for role, said in turns]))


def test_a_single_message_is_the_question() -> None:
    assert read(("user", "Hello")) == Conversation("Hello", (), None, ())


def test_earlier_turns_are_history_and_the_system_speaks_first() -> None:
    said = [("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    assert read(*said, ("user", "e")) == Conversation("e", (("a", "b"), ("c", "d")), "Be brief.", ())


def test_messages_of_one_role_in_a_row_are_one_turn() -> None:
    said = [("system", "x"), ("developer", "y"), ("user", "a"), ("user", "b"), ("assistant", "c"), ("assistant", "d")]
    assert read(*said, ("user", "e")) == Conversation("e", (("a\nb", "c\nd"),), "x\ny", ())


def test_images_beside_one_text_stand_before_it_as_in_the_released_chat() -> None:
    expected = Conversation("<image>\n<image>\nWhat?", (), None, ("1", "2"))
    assert read(("user", [text("What?"), image("1"), image("2")])) == expected
    assert read(("user", [image("1"), image("2"), text("What?")])) == expected
    assert read(("user", [image("1")])) == Conversation("<image>", (), None, ("1",))


def test_images_among_texts_keep_their_places() -> None:
    said = read(("user", [text("Is"), image("1"), text("or"), image("2"), text("larger?")]))
    assert said == Conversation("Is\n<image>\nor\n<image>\nlarger?", (), None, ("1", "2"))


def test_a_client_may_name_the_places_itself() -> None:
    said = read(("user", [text("Is <image> or <image> larger?"), image("1"), image("2")]))
    assert said == Conversation("Is <image> or <image> larger?", (), None, ("1", "2"))


def test_images_of_earlier_turns_stay_there() -> None:
    said = read(("user", [text("What?"), image("1")]), ("assistant", "A cat."), ("user", [image("2"), text("And?")]))
    assert said == Conversation("<image>\nAnd?", (("<image>\nWhat?", "A cat."),), None, ("1", "2"))


def test_a_placeholder_that_is_typed_takes_no_image_of_another_message() -> None:
    with pytest.raises(ApiError, match=r"message 0 .* names 1 places with <image> and it holds 0 images"):
        read(("user", "the tag <image>"), ("assistant", "yes"), ("user", [text("What?"), image("1")]))
    with pytest.raises(ApiError, match="names 1 places with <image> and it holds 2 images"):
        read(("user", [text("What is <image>?"), image("1"), image("2")]))
    assert read(("user", "the tag <image>")).question == "the tag <image>"  # without images it is text


@pytest.mark.parametrize(
    ("turns", "sentence"),
    [
        ([("assistant", "a"), ("user", "b")], "message 0 cannot be used: a conversation begins"),
        ([("system", "a")], "a conversation begins"),
        ([("user", "a"), ("assistant", "b")], "message 1 cannot be used: the last message"),
        ([("user", "a"), ("system", "b"), ("user", "c")], "message 1 cannot be used: what the system says"),
        ([("user", "a"), ("assistant", [image("1")]), ("user", "b")], "message 1 .* only messages of the user hold"),
    ],
)
def test_what_the_model_cannot_be_given_is_refused_by_number(turns: list[tuple[str, Any]], sentence: str) -> None:
    with pytest.raises(ApiError, match=sentence) as refusal:
        read(*turns)
    assert refusal.value.status == 400

"""The server's answers are those of the engines themselves, over every protocol and through both front models."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import replace

import pytest

from nvlm_trt.client import Answer, AsyncNvlmClient, Options
from nvlm_trt.decoder.request import SamplingParams

TWO = "Compare <image> with <image>, please."
GREEDY = Options(max_tokens=24)
LONG = Options(max_tokens=200)


@pytest.fixture
def expected(local):
    def ask(prompt, *, images=(), sampling=None, **more):
        sampling = sampling or SamplingParams(max_tokens=24, stop_ids=())
        return local.generate(prompt, sampling, images=list(images), **more)

    return ask


def test_a_text_only_question(client, expected):
    whole = expected("Hello, who are you?")
    answer = client.generate("Hello, who are you?", options=GREEDY)
    assert answer.text == whole.text
    assert answer.num_input_tokens == len(whole.input_ids)
    assert (answer.num_output_tokens, answer.finish_reason) == (len(whole.output_ids), whole.finish_reason)


def test_a_question_about_a_photograph(client, expected, jpeg):
    image = jpeg("astronaut")
    answer = client.generate("Who is this?", images=[image], options=GREEDY)
    assert answer.text == expected("Who is this?", images=[image]).text
    assert answer.text != client.generate("Who is this?", options=GREEDY).text


def test_two_photographs_in_their_order(client, expected, jpeg):
    pair = [jpeg("chelsea"), jpeg("rocket")]
    answer = client.generate(TWO, images=pair, options=GREEDY)
    assert answer.text == expected(TWO, images=pair).text
    assert answer.text != client.generate(TWO, images=pair[::-1], options=GREEDY).text


def test_a_conversation_with_history_and_system_message(client, expected):
    turns = [("What is two and two?", "Four."), ("And three more?", "Seven.")]
    answer = client.generate("Are you sure?", history=turns, system="Be brief.", options=GREEDY)
    assert answer.text == expected("Are you sure?", history=turns, system="Be brief.").text


def test_sampling_with_a_seed_is_repeatable(client, expected):
    options = Options(max_tokens=24, temperature=0.9, top_k=40, top_p=0.95, repetition_penalty=1.2, seed=7)
    sampling = SamplingParams(max_tokens=24, temperature=0.9, top_k=40, top_p=0.95, repetition_penalty=1.2, seed=7)
    answer = client.generate("Tell me a story.", options=options)
    assert answer.text == expected("Tell me a story.", sampling=sampling).text
    assert answer.text != client.generate("Tell me a story.", options=GREEDY).text


def test_streamed_pieces_join_to_the_whole_answer(client, jpeg):
    image = jpeg("coffee")
    whole = client.generate("What is it?", images=[image], options=LONG)
    stream = client.stream("What is it?", images=[image], options=LONG)
    pieces = list(stream)
    assert len(pieces) > 1  # of tokens that have come meanwhile several go together
    assert "".join(pieces) == whole.text
    # The second one finds the prompt of the first in the cache.
    assert replace(stream.answer, num_cached_tokens=whole.num_cached_tokens) == whole


@pytest.mark.parametrize("number", range(3))
def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(client, number):
    prompt = f"Question {number}"
    whole = client.generate(prompt, options=GREEDY).text
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    options = Options(max_tokens=24, stop_words=("never said", stop))
    answer = client.generate(prompt, options=options)
    stream = client.stream(prompt, options=options)
    assert answer.text == whole[: whole.index(stop)].rstrip()
    assert "".join(stream) == answer.text
    assert answer.finish_reason == "stop"
    assert stream.answer == answer


def test_min_tokens_and_max_tokens_bound_the_answer(client):
    answer = client.generate("Hi", options=Options(max_tokens=64, min_tokens=64))
    assert (answer.num_output_tokens, answer.finish_reason) == (64, "length")


def test_the_asyncio_client_gives_the_same(server, client):
    async def ask() -> tuple[Answer, str]:
        async with AsyncNvlmClient(server.grpc_url) as asking:
            whole = await asking.generate("Hello", options=GREEDY)
            async with asking.stream("Hello", options=GREEDY) as stream:
                return whole, "".join([piece async for piece in stream])

    whole, joined = asyncio.run(ask())
    assert whole == client.generate("Hello", options=GREEDY)
    assert joined == whole.text


def test_http_generate_gives_the_whole_answer(post, client, jpeg):
    photograph = jpeg("chelsea")
    body = {"text_input": "A cat?", "image_bytes": base64.b64encode(photograph).decode(), "max_tokens": 24}
    answer = post("models/nvlm/generate", body)
    assert answer.status == 200
    assert answer.json["text_output"] == client.generate("A cat?", images=[photograph], options=GREEDY).text


def test_http_takes_several_images_and_data_uris(post, client, jpeg):
    pair = [jpeg("chelsea"), jpeg("rocket")]
    uris = [f"data:image/jpeg;base64,{base64.b64encode(image).decode()}" for image in pair]
    answer = post("models/nvlm/generate", {"text_input": TWO, "image_bytes": uris, "max_tokens": 24})
    assert answer.json["text_output"] == client.generate(TWO, images=pair, options=GREEDY).text


def test_http_generate_stream_gives_pieces_and_a_finish_reason(post, client):
    answer = post("models/nvlm/generate_stream", {"text_input": "Hello", "max_tokens": 200, "stream": True})
    whole = client.generate("Hello", options=LONG)
    assert answer.status == 200
    assert len(answer.events) > 2  # pieces, and the end
    assert "".join(str(event["text_output"]) for event in answer.events) == whole.text
    assert [event["finish_reason"] for event in answer.events[:-1]] == [""] * (len(answer.events) - 1)
    assert answer.events[-1]["finish_reason"] == whole.finish_reason
    assert answer.events[-1]["num_output_tokens"] == whole.num_output_tokens


@pytest.mark.parametrize("images", [0, 1, 2])
def test_the_ensemble_gives_the_same_unary_answers(post, client, jpeg, images):
    pictures = [jpeg(name) for name in ("chelsea", "rocket")[:images]]
    body = {
        "text_input": "What is there?",
        "image_bytes": [base64.b64encode(picture).decode() for picture in pictures],
        "max_tokens": 24,
    }
    if not images:
        del body["image_bytes"]
    answer = post("models/ensemble/generate", body)
    direct = client.generate("What is there?", images=pictures, options=GREEDY)
    assert answer.status == 200
    assert answer.json["text_output"] == direct.text
    assert answer.json["num_output_tokens"] == direct.num_output_tokens

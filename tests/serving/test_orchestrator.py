"""One request over the composing models: pieces, stop texts, reasons, and who is asked at all."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Mapping

import numpy as np
import pytest

from nvlm_trt.decoder.stopping import answer_text
from nvlm_trt.errors import RequestError
from nvlm_trt.serving.orchestrator import Decoded, Orchestrator

TEXT = "Ein Bär 🐻 und ein 漢字, das ist alles."


class FakeDecoding:
    """Gives tokens in groups."""

    def __init__(self, groups: list[list[int]]) -> None:
        self.groups = groups
        self.given = 0
        self.stopped = False
        self.with_log_probs = False
        self.says_last = False
        self.cached: int | None = None

    async def __aiter__(self) -> AsyncIterator[Decoded]:
        for group in self.groups:
            self.given += 1
            last = self.says_last and self.given == len(self.groups)
            yield Decoded(group, [-index / 8 for index in group] if self.with_log_probs else (), last, self.cached)

    async def stop(self) -> None:
        self.stopped = True


class FakeBackends:
    """Composing models that note what they were asked."""

    def __init__(self, groups: list[list[int]], *, tiles: int = 0, limit: int = 100) -> None:
        self.decoding = FakeDecoding(groups)
        self.tiles, self.limit = tiles, limit
        self.decoded_tiles: np.ndarray | None = None
        self.inputs: Mapping[str, np.ndarray] = {}
        self.with_tiles = False

    async def preprocess(self, tensors: Mapping[str, np.ndarray], *, with_tiles: bool) -> dict[str, np.ndarray]:
        assert "stop_words" not in tensors
        self.with_tiles = with_tiles
        return {
            "num_tiles": np.array([self.tiles], np.int32),
            "tiles": np.zeros((max(self.tiles, 1), 2, 2, 3), np.uint8),
            "input_ids": np.array([[1, 2, 3]], np.int32),
            "input_lengths": np.array([[3]], np.int32),
            "request_output_len": np.array([[self.limit]], np.int32),
            "streaming": np.array([[False]]),
        }

    async def decode(self, inputs: Mapping[str, np.ndarray], tiles: np.ndarray | None, span) -> FakeDecoding:
        self.inputs, self.decoded_tiles = inputs, tiles
        self.decoding.with_log_probs = bool(inputs["return_log_probs"].item())
        return self.decoding


def ask(backends, tokenizer, **tensors):
    async def run():
        return [piece async for piece in Orchestrator(backends, tokenizer).answer(tensors)]

    return asyncio.run(run())


@pytest.fixture
def ids(tokenizer) -> list[int]:
    return tokenizer.encode_text(TEXT)


def one_by_one(ids: list[int]) -> list[list[int]]:
    return [[index] for index in ids]


def test_without_stream_there_is_one_response(tokenizer, ids, text):
    pieces = ask(FakeBackends([ids]), tokenizer, text_input=text("x"))
    assert [(piece.text, piece.reason) for piece in pieces] == [(TEXT, "stop")]
    assert (pieces[0].num_input_tokens, pieces[0].num_output_tokens) == (3, len(ids))


def test_streamed_pieces_join_to_the_whole_with_whole_characters(tokenizer, ids, text):
    pieces = ask(FakeBackends(one_by_one(ids)), tokenizer, text_input=text("x"), stream=np.array([True]))
    assert "".join(piece.text for piece in pieces) == TEXT
    assert len(pieces) > 5
    assert all("\ufffd" not in piece.text for piece in pieces)
    assert [piece.reason for piece in pieces] == [""] * (len(pieces) - 1) + ["stop"]


def test_the_last_text_and_the_end_are_one_response(tokenizer, ids, text):
    backends = FakeBackends([ids[:4], ids[4:]])
    backends.decoding.says_last = True
    pieces = ask(backends, tokenizer, text_input=text("x"), stream=np.array([True]))
    assert "".join(piece.text for piece in pieces) == TEXT
    assert [piece.reason for piece in pieces] == ["", "stop"]
    assert pieces[-1].text
    assert pieces[-1].num_output_tokens == len(ids)


def test_the_decoder_streams_only_where_that_is_needed(tokenizer, ids, text):
    for tensors, streaming in (({}, False), ({"stream": np.array([True])}, True), ({"stop_words": text("q")}, True)):
        backends = FakeBackends([ids])
        ask(backends, tokenizer, text_input=text("x"), **tensors)
        assert backends.inputs["streaming"].item() is streaming


@pytest.mark.parametrize("stream", [True, False])
def test_a_stop_text_ends_the_decoding_early(tokenizer, ids, text, stream):
    backends = FakeBackends(one_by_one(ids))
    fields = {"text_input": text("x"), "stop_words": text("und", "nie"), "stream": np.array([stream])}
    pieces = ask(backends, tokenizer, **fields)
    assert "".join(piece.text for piece in pieces) == "Ein Bär 🐻"
    assert pieces[-1].reason == "stop"
    assert backends.decoding.given < len(ids)
    assert backends.decoding.stopped


def test_an_answer_of_the_whole_length_says_so(tokenizer, ids, text):
    pieces = ask(FakeBackends([ids], limit=len(ids)), tokenizer, text_input=text("x"))
    assert pieces[-1].reason == "length"


def test_the_end_token_of_the_cpp_backend_is_no_part_of_the_answer(tokenizer, ids, text):
    with_end = [*ids, tokenizer.eos_id]
    pieces = ask(FakeBackends([with_end], limit=len(with_end)), tokenizer, text_input=text("x"))
    assert (pieces[-1].text, pieces[-1].reason, pieces[-1].num_output_tokens) == (TEXT, "stop", len(ids))


def test_an_answer_cut_inside_a_character_shows_the_replacement(tokenizer, text):
    ids = tokenizer.encode_text("🐻")[:-1]
    pieces = ask(FakeBackends([ids]), tokenizer, text_input=text("x"), stream=np.array([True]))
    assert "".join(piece.text for piece in pieces) == answer_text(tokenizer, ids)


def test_no_image_no_vision(tokenizer, ids, text):
    backends = FakeBackends([ids])
    ask(backends, tokenizer, text_input=text("x"))
    assert not backends.with_tiles
    assert backends.decoded_tiles is None


def test_tiles_go_to_the_decoder_beside_its_inputs(tokenizer, ids, text):
    backends = FakeBackends([ids], tiles=3)
    ask(backends, tokenizer, text_input=text("x"), image_bytes=text("file"))
    assert backends.with_tiles
    assert backends.decoded_tiles is not None
    assert backends.decoded_tiles.shape == (3, 2, 2, 3)
    assert not {"tiles", "num_tiles"} & set(backends.inputs)


def test_pixels_are_not_kept_while_the_answer_is_made(tokenizer, ids, text):
    backends = FakeBackends(one_by_one(ids), tiles=3)
    fields = {"text_input": text("x"), "image_bytes": text("file"), "stream": np.array([True])}

    async def run() -> None:
        answer = Orchestrator(backends, tokenizer).answer(fields)
        await anext(answer)
        pixels, backends.decoded_tiles = weakref.ref(backends.decoded_tiles), None
        gc.collect()
        assert pixels() is None
        await answer.aclose()

    asyncio.run(run())


def test_bad_stop_words_are_refused_before_anything_is_asked(tokenizer, text):
    backends = FakeBackends([])
    with pytest.raises(RequestError):
        ask(backends, tokenizer, text_input=text("x"), stop_words=text(""))
    assert not backends.inputs


def test_leaving_early_ends_the_decoding(tokenizer, ids, text):
    backends = FakeBackends(one_by_one(ids))

    async def run() -> None:
        answer = Orchestrator(backends, tokenizer).answer({"text_input": text("x"), "stream": np.array([True])})
        await anext(answer)
        await answer.aclose()

    asyncio.run(run())
    assert backends.decoding.stopped


@pytest.mark.parametrize("stream", [True, False])
def test_each_token_comes_once_with_its_log_probability_where_that_is_asked_for(tokenizer, ids, text, stream):
    fields = {"text_input": text("x"), "stop_words": text("漢字"), "stream": np.array([stream])}
    pieces = ask(FakeBackends(one_by_one(ids)), tokenizer, **fields, return_log_probs=np.array([True]))
    given = [index for piece in pieces for index in piece.tokens.ids]
    assert given == ids[: len(given)]
    assert len(given) == pieces[-1].num_output_tokens < len(ids)
    assert [value for piece in pieces for value in piece.tokens.log_probs] == [-index / 8 for index in given]
    silent = ask(FakeBackends(one_by_one(ids)), tokenizer, **fields)
    assert not any(piece.tokens.ids for piece in silent)


@pytest.mark.parametrize("cached", [None, 0, 64])
def test_cached_tokens_are_passed_on_as_the_decoder_tells_them(tokenizer, ids, text, cached):
    backends = FakeBackends(one_by_one(ids))
    backends.decoding.cached = cached
    pieces = ask(backends, tokenizer, text_input=text("x"), stream=np.array([True]))
    assert {piece.num_cached_tokens for piece in pieces} == {cached}

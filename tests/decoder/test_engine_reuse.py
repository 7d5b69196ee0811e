"""What the cache holds already is not computed again, and no answer changes by it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from nvlm_trt.decoder.engine import DecoderEngine
from nvlm_trt.decoder.engine_config import DecoderEngineConfig
from nvlm_trt.decoder.kv_memory import KvCacheSettings
from nvlm_trt.decoder.request import DecodeRequest, SamplingParams
from nvlm_trt.decoder.session_cpu import DecoderSession
from nvlm_trt.decoder.step import StepPart
from nvlm_trt.decoder.step_costs import ChunkLimits
from nvlm_trt.errors import RequestError, ServerError

TOKENS = 12
BLOCK = 32


class Watched:
    """The compiled decoder, with a count of the tokens that it was given; it can be made to fail, and held."""

    def __init__(self, directory: Path, blocks: int) -> None:
        self.config = DecoderEngineConfig.read(directory)
        self.session = DecoderSession(directory, self.config, blocks, threads=1)
        self.tokens = 0
        self.fail_at: int | None = None
        self.gate = threading.Event()
        self.gate.set()

    def run(self, parts: Sequence[StepPart], given_up: Callable[[], bool]) -> np.ndarray:
        assert self.gate.wait(30)
        logits = self.session.run(parts, given_up)
        self.tokens += sum(len(part.input_ids) for part in parts)
        if self.fail_at is not None and self.tokens >= self.fail_at:
            self.fail_at = None
            raise RuntimeError("broken step")
        return logits

    def cancel(self) -> None:
        self.session.cancel()


@pytest.fixture
def started(compiled: Callable[..., Path]) -> Iterator[Callable[..., tuple[DecoderEngine, Watched]]]:
    """Starts engines over the tiny fp32 decoder."""
    engines = []

    def start(blocks: int = 64, **more: object) -> tuple[DecoderEngine, Watched]:
        session = Watched(compiled("fp32"), blocks)
        engines.append(DecoderEngine(session.config, session, blocks, **more))
        return engines[-1], session

    yield start
    for engine in engines:
        engine.close()


@pytest.fixture
def alone(compiled: Callable[..., Path]) -> Iterator[Callable[[DecodeRequest], tuple[list[int], str]]]:
    """Answers a request by itself on an engine that shares nothing."""
    with DecoderEngine.load(compiled("fp32"), threads=1, cache=KvCacheSettings(reuse=False)) as engine:
        yield lambda request: engine.submit(request).result()
        assert engine.status().reused_tokens == engine.status().cached_blocks == 0


def ask(name: str, prompt: tuple[np.ndarray, np.ndarray | None], max_tokens: int = TOKENS) -> DecodeRequest:
    return DecodeRequest(name, *prompt, SamplingParams(max_tokens))


def test_a_prompt_that_was_read_is_not_read_again_but_for_its_last_block(started, make_prompt, alone):
    engine, session = started()
    prompt = make_prompt(1, 200, 40)
    first = engine.submit(ask("first", prompt)).result()
    before = session.tokens
    assert engine.submit(ask("second", prompt)).result() == first == alone(ask("x", prompt))
    assert session.tokens - before == 200 - 6 * BLOCK + TOKENS - 1
    status = engine.status()
    assert (status.prompt_tokens, status.reused_tokens) == (400, 6 * BLOCK)
    assert status.free_blocks == status.num_blocks


def test_the_last_token_is_computed_where_the_prompt_fills_its_blocks(started, make_prompt):
    engine, session = started()
    prompt = make_prompt(2, 3 * BLOCK)
    first = engine.submit(ask("first", prompt)).result()
    before = session.tokens
    assert engine.submit(ask("second", prompt)).result() == first
    assert session.tokens - before == BLOCK + TOKENS - 1


def test_the_second_turn_of_a_chat_finds_the_first_and_its_answer(started, make_prompt, alone):
    engine, session = started()
    ids, table = make_prompt(3, 150, 64)
    said, _ = engine.submit(ask("first", (ids, table), 60)).result()
    more, _ = make_prompt(4, 9)
    turn = (np.concatenate([ids, np.array(said, np.int32), more]), table)
    before = session.tokens
    assert engine.submit(ask("second", turn)).result() == alone(ask("x", turn))
    written = (150 + 60 - 1) // BLOCK * BLOCK
    assert session.tokens - before == len(turn[0]) - written + TOKENS - 1


def test_images_behind_equal_prompts_are_told_apart_from_their_first_differing_row(started, make_prompt, alone):
    engine, session = started()
    ids, table = make_prompt(5, 200, 64)
    other = table.copy()
    first_block = int(np.flatnonzero(ids >= session.config.vocab_size)[40] // BLOCK)
    other[40] += 1e-3
    engine.submit(ask("first", (ids, table))).result()
    reused = engine.status().reused_tokens
    assert engine.submit(ask("second", (ids, other))).result() == alone(ask("x", (ids, other)))
    assert engine.status().reused_tokens - reused == first_block * BLOCK


def test_requests_that_run_side_by_side_share_too(started, make_prompt, alone):
    engine, session = started(limits=ChunkLimits(alone=64))
    prompt = make_prompt(6, 300, 50)
    session.gate.clear()
    handles = [engine.submit(ask(f"r{number}", prompt)) for number in range(4)]
    session.gate.set()
    expected = alone(ask("x", prompt))
    assert [handle.result() for handle in handles] == [expected] * 4
    assert session.tokens == 300 + 3 * (300 - 9 * BLOCK) + 4 * (TOKENS - 1)


def test_a_failed_step_leaves_nothing_behind(started, make_prompt, alone, caplog):
    engine, session = started(limits=ChunkLimits(alone=64))
    prompt = make_prompt(7, 200)
    session.fail_at = 128
    with pytest.raises(ServerError, match="failed in this step"):
        engine.submit(ask("first", prompt)).result()
    assert engine.status().cached_blocks == 2  # of the step before
    assert engine.submit(ask("second", prompt)).result() == alone(ask("x", prompt))
    assert engine.status().reused_tokens == 2 * BLOCK


def test_a_cancelled_request_leaves_what_it_wrote_in_full(started, make_prompt):
    engine, session = started(limits=ChunkLimits(alone=64))
    prompt = make_prompt(8, 200)
    handle = engine.submit(ask("first", prompt, 100))
    next(iter(handle))
    handle.cancel()
    assert list(handle)[-1].finish_reason == "cancelled"
    before = session.tokens
    engine.submit(ask("second", prompt)).result()
    assert session.tokens - before == 200 - 6 * BLOCK + TOKENS - 1


def test_eight_bit_blocks_are_shared_too(compiled, make_prompt):
    prompt = make_prompt(9, 200, 40)
    with DecoderEngine.load(compiled("fp32"), threads=1, cache=KvCacheSettings(mib=1, precision="u8")) as engine:
        (first, *_), _ = engine.submit(ask("first", prompt)).result()
        (second, *_), _ = engine.submit(ask("second", prompt)).result()
        assert second == first  # what follows may differ: blocks are rounded, and chunks differ
        assert engine.status().reused_tokens == 6 * BLOCK
        assert engine.status().num_blocks == 105  # 42 in float32


def test_what_was_used_longest_ago_makes_room(started, make_prompt, alone):
    engine, _ = started(blocks=10)
    prompts = [make_prompt(seed, 200) for seed in (20, 21)]
    for number in range(4):
        prompt = prompts[number % 2]
        assert engine.submit(ask(f"r{number}", prompt)).result() == alone(ask("x", prompt))
    status = engine.status()
    assert status.evicted_blocks > 0
    assert status.cached_blocks <= status.num_blocks == status.free_blocks


def test_requests_wait_for_room_and_one_that_never_fits_is_told_so(started, make_prompt, alone):
    engine, session = started(blocks=8)
    session.gate.clear()
    prompts = [make_prompt(seed, 150) for seed in range(30, 36)]
    handles = [engine.submit(ask(f"r{number}", prompt)) for number, prompt in enumerate(prompts)]
    with pytest.raises(RequestError, match=r"longer than the KV cache; seen: 250 . 12 tokens; expected: at most 256"):
        engine.submit(ask("large", make_prompt(40, 250)))
    session.gate.set()
    assert [handle.result() for handle in handles] == [alone(ask("x", prompt)) for prompt in prompts]
    assert engine.status().free_blocks == 8


def test_32_mixed_streams_answer_as_each_does_alone_without_reuse(started, make_prompt, alone):
    """Equal prefixes, images, the same image behind other texts, cancels; a cache that holds a part of them."""

    def prompt(number: int) -> tuple[np.ndarray, np.ndarray | None]:
        ids, table = make_prompt(50 + number % 4, 160, (0, 64, 40, 0)[number % 4])
        tail, _ = make_prompt(70 + number % 8, 10 + 5 * (number % 3))
        return np.concatenate([ids, tail]), table

    requests = [ask(f"r{number}", prompt(number), 20 + number % 7) for number in range(32)]
    expected = [alone(each) for each in requests]
    engine, _ = started(blocks=40, limits=ChunkLimits(alone=96, least=24))
    handles = [engine.submit(each) for each in requests]
    for number in range(0, 32, 5):
        events = iter(handles[number])
        next(events)
        handles[number].cancel()
        assert list(events)[-1].finish_reason in ("cancelled", "length")
    kept = [number for number in range(32) if number % 5]
    assert [handles[number].result() for number in kept] == [expected[number] for number in kept]
    status = engine.status()
    assert (status.running, status.waiting, status.free_blocks) == (0, 0, 40)
    assert status.reused_tokens > 32 * 160 / 2

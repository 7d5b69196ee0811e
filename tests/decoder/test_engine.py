"""The engine answers every request as if it were alone, and outlives every fault."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from nvlm_trt.decoder.engine import DecoderEngine
from nvlm_trt.decoder.engine_config import DecoderEngineConfig
from nvlm_trt.decoder.kv_memory import KvCacheSettings
from nvlm_trt.decoder.request import DecodeRequest, SamplingParams, TokenEvent
from nvlm_trt.decoder.step import StepPart
from nvlm_trt.decoder.step_costs import ChunkLimits
from nvlm_trt.errors import EngineError, RequestError, ServerError
from nvlm_trt.model.reference.decoder import DecoderReference
from nvlm_trt.turns import Turns

TIE = 1e-3


def config(**change: int) -> DecoderEngineConfig:
    shapes = {
        "format": 1, "vocab_size": 20, "hidden_size": 4, "num_layers": 1, "num_heads": 1, "num_kv_heads": 1,
        "head_dim": 4, "block_size": 32, "max_batch_size": 4, "max_seq_len": 128, "max_prompt_table_rows": 8,
    }  # fmt: skip
    return DecoderEngineConfig(precision="fp32", **(shapes | change))


class Counting:
    """A session without a model: the token after n is n + 1, and it does what `on_step` says first.

    Attributes:
        steps: Steps that were begun.
        cancelled: Set when a step is to be ended.
    """

    def __init__(self, on_step: Callable[[Sequence[StepPart]], None] = lambda parts: None) -> None:
        self.on_step = on_step
        self.steps = 0
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        self.cancelled.set()

    def run(self, parts: Sequence[StepPart], given_up: Callable[[], bool]) -> np.ndarray:
        self.on_step(parts)
        if given_up():
            raise ServerError("given up")
        self.steps += 1
        wanted = [int(part.input_ids[-1]) for part in parts if part.wants_logits]
        return np.eye(20, dtype=np.float32)[[(last + 1) % 20 for last in wanted]]


def request(name: str, last: int = 0, **sampling: object) -> DecodeRequest:
    params = SamplingParams(**({"max_tokens": 3} | sampling))
    return DecodeRequest(name, np.array([last], np.int32), None, params)


@pytest.mark.parametrize(
    ("seed", "length", "rows"), [(0, 1, 0), (1, 33, 0), (2, 150, 0), (3, 40, 16), (4, 300, 64), (5, 9, 9)]
)
def test_greedy_fp32_equals_the_reference_for_64_tokens(fp32_engine, reference, make_prompt, seed, length, rows):
    ids, table = make_prompt(seed, length, rows)
    tokens, reason = fp32_engine.submit(DecodeRequest("one", ids, table, SamplingParams(64))).result()
    steps = reference.greedy_steps(ids, table, max_tokens=64)
    assert (len(tokens), reason) == (64, "length")
    for seen, (expected, logits) in zip(tokens, steps, strict=True):
        if seen != expected:
            assert float(logits[expected] - logits[seen]) < TIE
            break


def test_a_stop_id_ends_the_answer_as_in_the_reference(fp32_engine, reference: DecoderReference, make_prompt):
    ids, _ = make_prompt(7, 20)
    whole = reference.greedy(ids, max_tokens=20)
    stop = whole[10]
    expected = whole[: whole.index(stop)]
    assert fp32_engine.submit(DecodeRequest("s", ids, None, SamplingParams(20, stop_ids=(stop,)))).result() == (
        expected,
        "stop",
    )


def test_requests_that_join_leave_and_are_cancelled_do_not_change_each_other(compiled, make_prompt):
    """16 requests of every kind at different times, a third of them cancelled; survivors equal their solo runs."""
    requests = []
    for seed in range(16):
        ids, table = make_prompt(seed, (3, 40, 130, 260)[seed % 4], (0, 16)[seed % 4 == 1])
        temperature = 0.9 if seed % 5 == 0 else None
        params = SamplingParams(
            24 + 3 * (seed % 5), temperature=temperature, top_k=20, seed=seed, repetition_penalty=1.1
        )
        requests.append(DecodeRequest(f"r{seed}", ids, table, params))
    limits = ChunkLimits(alone=96, least=48)
    with DecoderEngine.load(compiled("fp32"), threads=1, cache=KvCacheSettings(mib=2), limits=limits) as engine:
        alone = [engine.submit(each).result() for each in requests]
        handles, most_at_once = [], 0
        for each in requests:
            handles.append(engine.submit(each))
            if len(handles) % 4 == 0:
                time.sleep(0.002)
            status = engine.status()
            most_at_once = max(most_at_once, status.running + status.waiting)
        for index in range(0, 16, 3):
            events = iter(handles[index])
            next(events)
            handles[index].cancel()
            assert list(events)[-1].finish_reason in ("cancelled", "length")
        assert most_at_once >= 4
        survivors = [index for index in range(16) if index % 3]
        assert [handles[index].result() for index in survivors] == [alone[index] for index in survivors]
        status = engine.status()
        assert (status.running, status.waiting, status.free_blocks) == (0, 0, status.num_blocks)


def test_200_requests_with_bad_and_cancelled_ones_all_end_and_the_good_ones_are_exact(compiled, make_prompt):
    def made(number: int, name: str) -> DecodeRequest:
        kind = number % 20  # twenty different requests, ten times over
        ids, table = make_prompt(kind, 5 + 13 * kind % 170, (0, 0, 5, 0)[kind % 4])
        if number % 10 == 7:
            ids[0] = -1
        return DecodeRequest(name, ids, table, SamplingParams(6 + kind, temperature=(None, 0.8)[kind % 2], seed=kind))

    with DecoderEngine.load(compiled("fp32"), threads=1, cache=KvCacheSettings(mib=1)) as engine:
        good = [kind for kind in range(20) if kind % 10 != 7]
        alone = {kind: engine.submit(made(kind, "alone")).result() for kind in good}
        handles, refused = {}, 0
        for number in range(200):
            try:
                handles[number] = engine.submit(made(number, f"request {number}"))
            except RequestError:
                refused += 1
            if number % 10 == 3:
                handles[number].cancel()
        results = {number: handle.result() for number, handle in handles.items()}
        status = engine.status()
    assert refused == 20
    assert (status.running, status.waiting, status.free_blocks) == (0, 0, status.num_blocks)
    assert all(results[number] == alone[number % 20] for number in results if number % 10 != 3)
    cancelled = [results[number] for number in results if number % 10 == 3]
    assert sum(reason == "cancelled" for _, reason in cancelled) > 15


def test_seeded_sampling_repeats_and_differs_between_seeds(fp32_engine, make_prompt):
    ids, _ = make_prompt(8, 12)

    def drawn(seed: int) -> list[int]:
        params = SamplingParams(24, temperature=1.0, top_p=0.95, seed=seed)
        return fp32_engine.submit(DecodeRequest("seeded", ids, None, params)).result()[0]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_a_cancelled_request_ends_at_the_next_token_and_frees_its_blocks():
    gate = threading.Semaphore(0)
    with DecoderEngine(config(), Counting(lambda parts: gate.acquire() and None), 4) as engine:
        handle = engine.submit(request("a", max_tokens=50))
        gate.release(2)
        events = iter(handle)
        assert [next(events).token, next(events).token] == [1, 2]
        handle.cancel()
        gate.release()
        assert list(events)[-1] == TokenEvent("a", None, "cancelled")
        assert engine.status().free_blocks == 4


def test_a_waiting_request_is_cancelled_while_another_ones_step_runs():
    gate, session = threading.Semaphore(0), Counting(lambda parts: gate.acquire() and None)
    with DecoderEngine(config(max_batch_size=1), session, 4) as engine:
        first, second = engine.submit(request("a")), engine.submit(request("b"))
        second.cancel()
        assert second.result() == ([], "cancelled")
        assert not session.cancelled.is_set()
        gate.release(3)
        assert first.result() == ([1, 2, 3], "length")
        engine.cancel("a")  # ended already: nothing happens


class Slow(Counting):
    """A session whose steps go on until the test lets them end, or they are cancelled."""

    def __init__(self) -> None:
        super().__init__(self._go_on)
        self.begun = threading.Semaphore(0)
        self.ends = threading.Semaphore(0)

    def _go_on(self, parts: Sequence[StepPart]) -> None:
        self.begun.release()
        while not self.ends.acquire(timeout=0.002):
            if self.cancelled.is_set():
                raise RuntimeError("cancelled")


def test_a_step_that_nobody_wants_any_more_is_ended_and_its_blocks_are_free(caplog):
    session = Slow()
    with DecoderEngine(config(), session, 4) as engine:
        handle = engine.submit(request("a", max_tokens=50))
        assert session.begun.acquire(timeout=30)
        handle.cancel()
        assert handle.result() == ([], "cancelled")
        assert engine.status().free_blocks == 4
        session.ends.release(3)
        assert engine.submit(request("b")).result() == ([1, 2, 3], "length")
    assert not caplog.text


def test_a_step_that_another_one_wants_is_not_ended():
    session = Slow()
    with DecoderEngine(config(), session, 4) as engine:
        first, second = (engine.submit(request(name, max_tokens=50)) for name in "ab")
        session.ends.release(2)
        for _ in range(3):  # the third step holds both
            assert session.begun.acquire(timeout=30)
        first.cancel()
        assert not session.cancelled.is_set()
        second.cancel()
        assert [first.result()[1], second.result()[1]] == ["cancelled", "cancelled"]


def test_steps_take_turns_with_whoever_else_computes(tmp_path):
    others, seen = Turns(tmp_path), []
    others.take()
    with DecoderEngine(config(), Counting(lambda parts: seen.append(1)), 4, turns=Turns(tmp_path)) as engine:
        handle = engine.submit(request("a"))
        time.sleep(0.1)
        assert not seen
        others.give()
        assert handle.result() == ([1, 2, 3], "length")


def test_a_fault_in_a_step_ends_its_requests_and_the_engine_lives_on(caplog):
    def fail_once(parts: Sequence[StepPart]) -> None:
        if any(part.input_ids[-1] == 5 for part in parts):
            raise RuntimeError("broken step")

    with DecoderEngine(config(), Counting(fail_once), 4) as engine:
        with pytest.raises(ServerError, match="failed in this step"):
            engine.submit(request("bad", 3)).result()
        assert engine.status().free_blocks == 4
        assert engine.submit(request("good", 10)).result() == ([11, 12, 13], "length")
    assert "broken step" in caplog.text


def test_a_sink_that_raises_ends_its_own_request_only(caplog):
    def broken(event: TokenEvent) -> None:
        raise ValueError("broken sink")

    with DecoderEngine(config(), Counting(), 4) as engine:
        engine.submit(request("bad"), broken)
        assert engine.submit(request("good")).result() == ([1, 2, 3], "length")
        assert engine.status().free_blocks == 4
    assert "broken sink" in caplog.text


def test_a_fault_in_sampling_ends_its_own_request_only(caplog):
    class Wide(Counting):
        def run(self, parts: Sequence[StepPart], given_up: Callable[[], bool]) -> np.ndarray:
            rows = zip(super().run(parts, given_up), parts, strict=True)
            return [row[:2] if part.input_ids[-1] == 7 else row for row, part in rows]

    with DecoderEngine(config(), Wide(), 4) as engine:
        bad = engine.submit(request("bad", 7, repetition_penalty=2.0))
        assert engine.submit(request("good")).result() == ([1, 2, 3], "length")
        with pytest.raises(ServerError, match="choosing a token failed"):
            bad.result()
    assert "choosing a token failed" in caplog.text


def test_close_ends_everything_and_refuses_new_requests():
    started = threading.Event()
    release = threading.Event()

    def hold(parts: Sequence[StepPart]) -> None:
        started.set()
        release.wait(5)

    engine = DecoderEngine(config(max_batch_size=1), Counting(hold), 4)
    handles = [engine.submit(request(name, max_tokens=50)) for name in "ab"]
    started.wait(5)
    threading.Timer(0.02, release.set).start()
    engine.close()
    engine.close()
    assert [handle.result()[1] for handle in handles] == ["cancelled", "cancelled"]
    with pytest.raises(ServerError, match="closed"):
        engine.submit(request("c"))


def test_whoever_hangs_up_while_the_engine_closes_is_told_once_and_nobody_is_forgotten():
    hold = threading.Event()
    engine = DecoderEngine(config(max_batch_size=1), Counting(lambda parts: hold.wait(5)), 4)
    told: dict[str, list[str | None]] = {name: [] for name in "abcd"}

    def sink(event: TokenEvent) -> None:
        told[event.request_id].append(event.finish_reason)
        if event.finish_reason is not None:
            engine.cancel("c")

    for name in told:
        engine.submit(request(name, max_tokens=50), sink)
    threading.Timer(0.02, hold.set).start()
    engine.close()
    assert [reasons[-1] for reasons in told.values()] == ["cancelled"] * 4
    assert all(reasons.count("cancelled") == 1 for reasons in told.values())


def test_a_step_that_is_given_up_while_it_is_prepared_does_not_run():
    preparing, prepared = threading.Event(), threading.Event()

    def prepare(parts: Sequence[StepPart]) -> None:
        preparing.set()
        prepared.wait(5)

    session = Counting(prepare)
    with DecoderEngine(config(), session, 4) as engine:
        handle = engine.submit(request("a"))
        preparing.wait(5)
        handle.cancel()
        prepared.set()
        assert handle.result() == ([], "cancelled")
        assert session.steps == 0


def test_an_idle_engine_runs_no_steps_but_its_heart_beats():
    session = Counting()
    with DecoderEngine(config(), session, 4) as engine:
        engine.submit(request("a")).result()
        steps, beat = session.steps, engine.heartbeat
        spent = time.process_time()
        time.sleep(1.2)
        assert session.steps == steps
        assert engine.heartbeat > beat
        assert time.process_time() - spent < 0.3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_dies_ends_every_request_with_an_error(monkeypatch):
    engine = DecoderEngine(config(), Counting(), 4)
    monkeypatch.setattr(engine._scheduler, "plan", lambda: 1 / 0)
    handle = engine.submit(request("a"))
    with pytest.raises(ServerError, match="engine ended"):
        handle.result()
    engine.close()


@pytest.mark.parametrize(
    ("ids", "table", "words"),
    [
        ([], None, "prompt is empty"),
        ([1, -1], None, "an id of the prompt is out of range; seen: -1"),
        ([1, 20], None, "seen: 20; expected: 0 to 19 .20 tokens, 0 rows"),
        ([20, 22], np.zeros((2, 4), np.float32), "seen: 22"),
        ([1], np.zeros((2, 5), np.float32), "does not fit the engine; seen: 2 x 5; expected: at most 8 x 4"),
        ([1], np.zeros((9, 4), np.float32), "seen: 9 x 4"),
        ([1], np.zeros((2, 4), np.float64), "wrong type; seen: float64"),
        ([1], [[0.0]], "wrong type; seen: list"),
        ([1], np.full((2, 4), np.nan, np.float32), "not finite"),
        ([1] * 126, None, "longer than the engine; seen: 126 . 3 tokens; expected: at most 128"),
    ],
)
def test_a_bad_request_is_refused_alone(ids, table, words):
    with DecoderEngine(config(), Counting(), 4) as engine:
        with pytest.raises(RequestError, match=words):
            engine.submit(DecodeRequest("bad", np.array(ids, np.int32), table, SamplingParams(3)))
        assert engine.status().running + engine.status().waiting == 0


def test_ids_of_another_type_and_a_used_name_are_refused():
    gate = threading.Event()
    with DecoderEngine(config(), Counting(lambda parts: gate.wait(5) and None), 4) as engine:
        with pytest.raises(RequestError, match=r"int64 \[1\]"):
            engine.submit(DecodeRequest("bad", np.zeros(1, np.int64), None, SamplingParams(3)))
        with pytest.raises(RequestError, match="seen: list"):
            engine.submit(DecodeRequest("bad", [1], None, SamplingParams(3)))
        engine.submit(request("same"))
        with pytest.raises(RequestError, match="in use; seen: same"):
            engine.submit(request("same"))
        gate.set()


def test_a_request_that_the_cache_can_never_hold_is_refused():
    with DecoderEngine(config(), Counting(), 1) as engine, pytest.raises(RequestError, match="at most 32"):
        engine.submit(request("large", max_tokens=32))


def test_a_directory_without_an_engine_is_refused(tmp_path: Path):
    with pytest.raises(EngineError, match="no compiled decoder"):
        DecoderEngine.load(tmp_path)


def test_a_long_prompt_stalls_other_streams_by_less_than_two_and_a_half_steps():
    """With costs that the session only pretends to have, on a clock that only it moves."""
    now, last_token, pauses, calm = 0.0, {}, [], 60
    streams_run, submitted = threading.Event(), threading.Event()

    def spend(parts: Sequence[StepPart]) -> None:
        nonlocal now
        now += max(0.020, 0.001 * sum(len(part.input_ids) for part in parts)) + 0.001 * len(parts)

    def note(event: TokenEvent) -> None:
        if event.request_id in last_token:
            pauses.append(now - last_token[event.request_id])
        last_token[event.request_id] = now
        if len(pauses) == calm:
            streams_run.set()
            assert submitted.wait(10)

    shapes = config(max_seq_len=8192)
    with DecoderEngine(shapes, Counting(spend), 1024, clock=lambda: now) as engine:
        streams = [engine.submit(request(f"stream {number}", number, max_tokens=4000), note) for number in range(3)]
        assert streams_run.wait(10)
        long = DecodeRequest("long", np.arange(1852, dtype=np.int32) % 20, None, SamplingParams(1))
        handle = engine.submit(long)
        submitted.set()
        handle.result()
        for stream in streams:
            stream.cancel()
    usual = float(np.median(pauses[:calm]))
    assert max(pauses) < 2.5 * usual
    assert sum(pause > 1.5 * usual for pause in pauses) > 20

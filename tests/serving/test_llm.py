"""The cpu decoder behind the C++ backend's tensors."""

from __future__ import annotations

import contextlib
import queue
import threading
import time

import numpy as np
import pytest

from nvlm_trt.decoder.engine import CheckedRequest
from nvlm_trt.decoder.request import TokenEvent
from nvlm_trt.decoder.request_handle import RequestHandle
from nvlm_trt.decoder.stages import Stages
from nvlm_trt.decoder.status import EngineStatus
from nvlm_trt.errors import RequestError, ServerError
from nvlm_trt.serving.faults import UnavailableError
from nvlm_trt.serving.llm import LlmServer, padded
from nvlm_trt.serving.llm_request import parse_llm_request

VOCABULARY = 100


class FakeEngine:
    """Keeps requests; the test says what happens to them."""

    def __init__(self) -> None:
        self.requests = {}
        self.sinks = {}
        self.cancelled = []
        self.refuse = None
        self.reused = 0
        self.checked_by = set()

    def check(self, request):
        self.checked_by.add(threading.current_thread().name)
        if self.refuse:
            raise self.refuse
        return CheckedRequest(request, None)

    def submit(self, request, sink):
        self.requests[request.request.request_id] = request.request
        self.sinks[request.request.request_id] = sink
        return RequestHandle(request.request.request_id, lambda: None, Stages(3, 2, queued=1.0, began=2.0, first=4.0))

    def status(self):
        return EngineStatus(0, 0, 8, 8, 0, 0, 0, self.reused)

    def cancel(self, name):
        self.cancelled.append(name)
        self.sinks[name](TokenEvent(name, None, "cancelled"))

    def tokens(self, name, *tokens, reason=None, error=None):
        for token in tokens:
            self.sinks[name](TokenEvent(name, token))
        if reason:
            self.sinks[name](TokenEvent(name, None, reason, error))


class FakeChannel:
    """Notes what is sent, and by which thread."""

    def __init__(self) -> None:
        self.sent = []
        self.log_probs = []
        self.cached = []
        self.error = None
        self.gone = False
        self.broken = self.ending_breaks = False
        self.threads = set()
        self.ended = threading.Event()

    def send(self, ids, *, final, log_probs=(), cached=0):
        self.threads.add(threading.current_thread().name)
        self.sent.append(ids)
        self.log_probs += log_probs
        self.cached.append(cached)
        if self.broken:
            raise OSError("gone")
        if final:
            self._end()

    def fail(self, error):
        self.error = error
        self._end()

    def _end(self):
        if self.ending_breaks:
            raise OSError("no memory")
        self.ended.set()

    def is_cancelled(self):
        self.threads.add(threading.current_thread().name)
        return self.gone

    @property
    def ids(self):
        return [index for group in self.sent for index in group]


def tensors(**more):
    made = {
        "input_ids": np.array([[1, 2, 3]], np.int32),
        "input_lengths": np.array([3], np.int32),
        "request_output_len": np.array([10], np.int32),
    }
    return {**made, **{name: np.array(value) for name, value in more.items()}}


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def server(engine):
    made = LlmServer(engine, VOCABULARY)
    yield made
    made.close()


def submit(server, engine, *, client_id="", **more):
    channel, known = FakeChannel(), len(engine.requests)
    server.submit(tensors(**more), client_id, channel)
    wait(lambda: len(engine.requests) > known or channel.ended.is_set())
    return channel


def wait(condition):
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


def test_streamed_tokens_come_in_order_and_the_last_response_is_marked(server, engine):
    channel = submit(server, engine, streaming=[True])
    engine.tokens("0", 4)
    wait(lambda: channel.ids == [4])
    engine.tokens("0", 5, 6, reason="length")
    assert channel.ended.wait(5)
    assert channel.ids == [4, 5, 6]
    assert set(channel.cached) == {2}
    wait(lambda: server.active == 0)


def test_without_streaming_all_tokens_come_at_once(server, engine):
    channel = submit(server, engine)
    engine.tokens("0", 4, 5, 6, reason="stop")
    assert channel.ended.wait(5)
    assert channel.sent == [[4, 5, 6]]


def test_everything_is_sent_by_one_thread(server, engine):
    channels = [submit(server, engine, streaming=[True]) for _ in range(4)]
    threads = [
        threading.Thread(target=engine.tokens, args=(str(number), *range(20)), kwargs={"reason": "stop"})
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for channel in channels:
        assert channel.ended.wait(5)
        assert channel.ids == list(range(20))
        assert channel.threads <= {"nvlm-sender"}


def test_requests_are_checked_by_the_thread_that_brings_them(server, engine):
    """Naming the blocks of a long prompt takes milliseconds, which other streams' tokens need not wait for."""
    submit(server, engine)
    assert engine.checked_by == {threading.current_thread().name}


def test_the_status_is_told_when_it_has_changed_by_the_thread_that_sends(engine):
    told, threads = [], set()

    def report(status):
        told.append(status.reused_tokens)
        threads.add(threading.current_thread().name)

    server = LlmServer(engine, VOCABULARY, report)
    wait(lambda: told == [0])
    engine.reused = 64
    wait(lambda: told == [0, 64])
    server.close()
    assert threads == {"nvlm-sender"}


def test_the_stages_of_each_request_that_ended_are_told(engine):
    observed = queue.SimpleQueue()
    with contextlib.closing(LlmServer(engine, vocab_size=10, observe=observed.put)) as server:
        submit(server, engine)
        engine.tokens("0", 4, 5, reason="length")
        assert observed.get(timeout=30) == Stages(3, 2, queued=1.0, began=2.0, first=4.0)


def test_an_answer_is_sent_whatever_becomes_of_its_figures(engine, caplog):
    def observe(stages):
        raise ValueError("no such figure")

    with contextlib.closing(LlmServer(engine, vocab_size=10, observe=observe)) as server:
        channel = submit(server, engine)
        engine.tokens("0", 4, 5, reason="length")
        assert channel.ended.wait(5)
        assert channel.sent == [[4, 5]]
        wait(lambda: "noting the end of a request failed" in caplog.text)


@pytest.mark.parametrize(
    "end",
    [
        lambda engine: engine.tokens("0", 4, reason="stop"),
        lambda engine: engine.tokens("0", reason="error", error="bad"),
        lambda engine: engine.tokens("0", reason="cancelled"),
    ],
    ids=["answer", "fault", "closing"],
)
def test_a_last_response_that_cannot_be_sent_is_told(engine, end):
    lost = threading.Event()
    with contextlib.closing(LlmServer(engine, VOCABULARY, lost=lost.set)) as server:
        channel = submit(server, engine)
        channel.ending_breaks = True
        assert not lost.is_set()
        end(engine)
        assert lost.wait(5)
        assert server.active == 0


def test_a_refusal_that_cannot_be_sent_is_told(engine):
    lost, channel = threading.Event(), FakeChannel()
    channel.ending_breaks = True
    with contextlib.closing(LlmServer(engine, VOCABULARY, lost=lost.set)) as server:
        server.submit(tensors(beam_width=[4]), "", channel)
        assert lost.wait(5)


def test_a_client_that_goes_away_frees_its_place(server, engine):
    channel = submit(server, engine, streaming=[True])
    channel.gone = True
    wait(lambda: engine.cancelled == ["0"])
    assert channel.ended.wait(5)


def test_stop_by_id_ends_the_requests_of_that_id_only(server, engine):
    mine = submit(server, engine, client_id="mine")
    other = submit(server, engine, client_id="other")
    stop = FakeChannel()
    server.submit(tensors(stop=[[True]]), "mine", stop)
    assert mine.ended.wait(5)
    assert stop.ended.wait(5)
    assert not other.ended.is_set()


def test_stop_without_an_id_ends_nothing(server, engine):
    nameless = submit(server, engine)
    stop = FakeChannel()
    server.submit(tensors(stop=[[True]]), "", stop)
    assert stop.ended.wait(5)
    assert not nameless.ended.is_set()


def test_a_fault_of_the_engine_ends_its_request(server, engine):
    channel = submit(server, engine)
    engine.tokens("0", 4, reason="error", error="the decoder failed in this step")
    assert channel.ended.wait(5)
    assert isinstance(channel.error, ServerError)


def test_an_engine_that_closes_says_come_back(server, engine):
    channel = submit(server, engine)
    engine.tokens("0", reason="cancelled")
    assert channel.ended.wait(5)
    assert isinstance(channel.error, UnavailableError)


def test_what_the_engine_refuses_is_told(server, engine):
    engine.refuse = RequestError("too long")
    channel = submit(server, engine)
    assert str(channel.error) == "too long"
    assert server.active == 0


def test_a_bad_request_is_told(server, engine):
    channel = submit(server, engine, beam_width=[4])
    assert "beam_width is not served" in str(channel.error)


def test_a_broken_client_does_not_end_the_others(server, engine, caplog):
    broken, well = submit(server, engine, streaming=[True]), submit(server, engine, streaming=[True])
    broken.broken = True
    engine.tokens("0", 1)
    engine.tokens("1", 2, reason="stop")
    assert well.ended.wait(5)
    wait(lambda: engine.cancelled == ["0"])
    assert "sending failed" in caplog.text


def test_an_answer_with_a_gap_does_not_end_as_a_whole_one(server, engine):
    channel = submit(server, engine, streaming=[True])
    engine.tokens("0", 1)
    wait(lambda: channel.ids == [1])
    channel.broken = True
    engine.sinks["0"](TokenEvent("0", 2))
    wait(lambda: engine.cancelled == ["0"])
    assert channel.ended.wait(5)
    assert isinstance(channel.error, UnavailableError)
    assert channel.sent == [[1], [2]]  # the second is the one that failed; nothing was sent behind it


def test_an_ensemble_carries_no_empty_tensor():
    ids, length = padded([], 7)
    assert (ids.tolist(), length) == ([[[7]]], 0)
    assert padded([1, 2], 7)[0].tolist() == [[[1, 2]]]


def test_sampling_is_read_as_tensorrt_llm_reads_it():
    request = parse_llm_request(
        tensors(runtime_top_k=[[5]], runtime_top_p=[[0.5]], temperature=[[0.7]], seed=[[2**64 - 1]], end_id=[[9]]),
        "x",
        VOCABULARY,
    ).decode.sampling
    assert (request.top_k, request.top_p, request.seed, request.stop_ids) == (5, 0.5, 2**64 - 1, (9,))
    assert not request.greedy
    assert parse_llm_request(tensors(), "x", VOCABULARY).decode.sampling.greedy
    assert parse_llm_request(tensors(runtime_top_k=[[1]]), "x", VOCABULARY).decode.sampling.greedy


def test_padding_beyond_the_length_is_no_prompt():
    request = parse_llm_request(tensors(input_lengths=[2]), "x", VOCABULARY).decode
    assert request.input_ids.tolist() == [1, 2]


def test_a_table_that_no_id_refers_to_is_dropped():
    table = np.ones((1, 4, 8), np.float32)
    made = {**tensors(), "prompt_embedding_table": table}
    assert parse_llm_request(made, "x", VOCABULARY).decode.prompt_table is None
    made["input_ids"] = np.array([[1, VOCABULARY, 3]], np.int32)
    seen = parse_llm_request(made, "x", VOCABULARY).decode.prompt_table
    assert seen is not None
    assert seen.shape == (4, 8)


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ({"input_ids": [[1, 2, 3], [4, 5, 6]]}, "one request at a time"),
        ({"input_lengths": [4]}, "input_lengths is out of range"),
        ({"input_lengths": [1, 2]}, "does not hold one value"),
        ({"presence_penalty": [0.5]}, "presence_penalty is not served"),
        ({"stop_words_list": [[[1], [1]]]}, "send stop_words to the model nvlm"),
        ({"bad_words_list": [[[1], [1]]]}, "bad_words_list is not served"),
        ({"embedding_bias": [[0.5]]}, "embedding_bias is not served"),
        ({"return_context_logits": [True]}, "return_context_logits is not served"),
        ({"temperature": [float("nan")], "runtime_top_k": [5]}, "temperature"),
        ({"input_ids": [[1, VOCABULARY]], "input_lengths": [2], "prompt_embedding_table": [[1.0]]}, "another shape"),
    ],
)
def test_what_this_decoder_cannot_do_is_refused(more, fault):
    with pytest.raises(RequestError, match=fault):
        parse_llm_request(tensors(**more), "x", VOCABULARY)


@pytest.mark.parametrize("name", ["input_ids", "request_output_len"])
def test_a_missing_tensor_is_named(name):
    made = tensors()
    del made[name]
    with pytest.raises(RequestError, match=f"{name} is missing"):
        parse_llm_request(made, "x", VOCABULARY)


@pytest.mark.parametrize("streaming", [True, False])
def test_log_probabilities_go_with_their_tokens(server, engine, streaming):
    channel = submit(server, engine, streaming=[streaming], return_log_probs=[True])
    name, request = next(iter(engine.requests.items()))
    assert request.sampling.log_probs
    for token, log_prob in ((7, -0.5), (8, 0.0), (9, -2.0)):
        engine.sinks[name](TokenEvent(name, token, log_prob=log_prob))
    engine.tokens(name, reason="stop")
    assert channel.ended.wait(5)
    assert (channel.ids, channel.log_probs) == ([7, 8, 9], [-0.5, 0.0, -2.0])


def test_a_send_that_does_not_end_is_seen_from_outside(server, engine):
    begun, release = threading.Event(), threading.Event()

    class Held(FakeChannel):
        def send(self, ids, *, final, log_probs=(), cached=0):
            begun.set()
            release.wait(30)
            super().send(ids, final=final, log_probs=log_probs, cached=cached)

    channel = Held()
    server.submit(tensors(streaming=[[True]]), "", channel)
    wait(lambda: engine.requests)
    engine.tokens("0", 5)
    assert begun.wait(30)
    held = server.sending.position
    engine.tokens("0", 6, reason="stop")
    assert held is not None
    assert server.sending.position == held
    release.set()
    assert channel.ended.wait(30)
    wait(lambda: server.sending.position != held)


def test_a_decoding_has_ended_before_who_asked_is_told(server, engine, monkeypatch):
    ends = []
    monkeypatch.setattr("nvlm_trt.serving.llm.trace_decoding", lambda *facts: ends.append(facts[-1]))

    class Slow(FakeChannel):
        def send(self, ids, *, final, log_probs=(), cached=0):
            self.told = time.monotonic()
            super().send(ids, final=final, log_probs=log_probs, cached=cached)

    channel = Slow()
    server.submit(tensors(), "", channel)
    wait(lambda: engine.requests)
    engine.tokens("0", 5, reason="stop")
    wait(lambda: ends)
    assert ends[0] <= channel.told

"""The load: so many callers, every question once."""

from __future__ import annotations

import threading

import pytest

from nvlm_trt.bench import load
from nvlm_trt.bench.load import run_wave
from nvlm_trt.bench.record import RequestRecord
from nvlm_trt.bench.workload import Question
from nvlm_trt.errors import ServerError

from .made_up import made_request


class Meeting:
    """Answers only when `size` callers are there, so that fewer would wait for ever."""

    def __init__(self, size: int) -> None:
        self.size, self.inside, self.most = size, 0, 0
        self.asked: list[str] = []
        self.lock = threading.Lock()
        self.together = threading.Barrier(size)

    def ask(self, question: Question) -> RequestRecord:
        with self.lock:
            self.asked.append(question.text)
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.together.wait(timeout=60)
        with self.lock:
            self.inside -= 1
        return made_request()


@pytest.mark.parametrize("concurrency", [1, 3])
def test_as_many_are_under_way_as_asked_for_and_every_question_once(concurrency: int) -> None:
    meeting = Meeting(concurrency)
    questions = [Question(str(number), ()) for number in range(6)]
    wave = run_wave(meeting, questions, concurrency)
    assert meeting.most == concurrency
    assert sorted(meeting.asked) == [str(number) for number in range(6)]
    assert (wave.concurrency, len(wave.requests)) == (concurrency, 6)
    assert wave.output_tokens == 66
    assert wave.images == 6


def test_a_request_that_fails_ends_the_wave() -> None:
    asked: list[str] = []

    class Failing:
        def ask(self, question: Question) -> RequestRecord:
            asked.append(question.text)
            if len(asked) == 2:
                raise ServerError("the server died")
            return made_request()

    with pytest.raises(ServerError, match="the server died"):
        run_wave(Failing(), [Question(str(number), ()) for number in range(9)], 1)
    assert asked == ["0", "1"]


def test_an_interruption_stops_the_callers_after_their_requests_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    interrupted = threading.Event()

    class Waiting:
        def ask(self, question: Question) -> RequestRecord:
            asked.append(question.text)
            interrupted.wait(timeout=60)
            return made_request()

    def interrupt(_calls: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    monkeypatch.setattr(load, "as_completed", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_wave(Waiting(), [Question(str(number), ()) for number in range(10_000)], 2)
    assert len(asked) < 10_000

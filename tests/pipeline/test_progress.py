"""What a person sees of a build."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from nvlm_trt.pipeline import progress
from nvlm_trt.pipeline.progress import PlainLines, Silent, TerminalBars, reporter_for


def test_plain_lines_tell_bytes_rate_and_time_left_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    reporter = PlainLines(stream)
    with reporter.task("vision-export") as report:
        for done in (1, 2, 3):
            clock[0] += 6
            report(done * 10**9, 4 * 10**9)
    reporter.line("done")
    assert stream.getvalue() == "vision-export: 2.0 GB of 4.0 GB, 166.7 MB/s, 12 s left\ndone\n"


def test_the_work_of_an_earlier_run_is_none_of_this_ones_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    with PlainLines(stream).task("decoder-calibrate") as report:
        for seconds, done in ((20, 120.0), (60, 121.8)):
            clock[0] += seconds
            report(int(done * 10**9), 145 * 10**9)
    assert stream.getvalue().splitlines() == [
        "decoder-calibrate: 120.0 GB of 145.0 GB",
        "decoder-calibrate: 121.8 GB of 145.0 GB, 30.0 MB/s, 773 s left",
    ]


def test_a_log_that_nobody_reads_any_more_does_not_end_the_work() -> None:
    program = "from nvlm_trt.pipeline.progress import PlainLines\nlog = PlainLines()\nfor _ in range(3): log.line('x')"
    reading, writing = os.pipe()
    os.close(reading)
    full = os.open("/dev/full", os.O_WRONLY)
    for nobody in (writing, full):
        ended = subprocess.run([sys.executable, "-c", program], stderr=nobody, check=False)
        os.close(nobody)
        assert ended.returncode == 0


def test_silence_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Silent()
    reporter.line("nothing")
    with reporter.task("nothing") as report:
        report(1, 2)
    assert capsys.readouterr() == ("", "")


def test_bars_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = TerminalBars()
    with reporter.task("digest") as report:
        report(1, 2)
        reporter.line("[1/7] inspect: stands")
    out, err = capsys.readouterr()
    assert out == ""
    assert "[1/7] inspect: stands" in err


def test_bars_need_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert isinstance(reporter_for(silent=False), TerminalBars)
    assert isinstance(reporter_for(silent=True), Silent)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert isinstance(reporter_for(silent=False), PlainLines)

"""`nvlm-trt batch`: exit codes, what is printed, and runs that are killed or interrupted."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import pytest

from nvlm_trt.cli.batch_progress import plain_lines, progress_for, rate_in_words
from nvlm_trt.client.batch_output import Tally

from ..client.stand_in import Asked, Refused, StandIn

COUNT = 60


@pytest.fixture
def source(tmp_path):
    """Prompts q0, q1, ... under the ids r0, r1, ..."""
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"id": f"r{i}", "prompt": f"q{i}"}) + "\n" for i in range(COUNT)))
    return path


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.jsonl"


def records(output: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in output.read_text().splitlines()]


ALL = sorted(f"r{i}" for i in range(COUNT))


def refuse_q3(asked: Asked) -> str:
    if asked["text_input"] == ["q3"]:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "too long")
    return "yes"


def test_all_answered_is_0_and_the_next_run_has_nothing_to_do(nvlm_trt, source, output):
    with StandIn() as server:
        shown = nvlm_trt("batch", source, output, "--url", server.url)
        assert (shown.code, shown.err) == (0, "")
        assert shown.out.startswith(f"{output}: {COUNT} answered, 0 failed, {COUNT} asked in ")
        again = nvlm_trt("batch", source, output, "--url", server.url, "--json")
        assert len(server.asked) == COUNT
    assert again.err == ""
    facts = again.json
    assert facts.pop("seconds") >= 0
    assert facts == {
        "requests": str(source),
        "answers": str(output),
        "records": COUNT,
        "answered": COUNT,
        "failed": 0,
        "asked": 0,
        "num_input_tokens": 3 * COUNT,
        "num_output_tokens": 2 * COUNT,
    }
    assert sorted(record["id"] for record in records(output)) == ALL


def test_some_failed_is_1_until_they_are_answered(nvlm_trt, source, output):
    with StandIn(refuse_q3) as server:
        words = ("batch", source, output, "--url", server.url)
        shown = nvlm_trt(*words)
        assert shown.code == 1
        assert "1 requests have an error; --retry-failed asks them again" in shown.err
        assert nvlm_trt(*words).code == 1
        assert len(server.asked) == COUNT
        server.script = lambda asked: "yes"
        assert nvlm_trt(*words, "--retry-failed").code == 0
        assert len(server.asked) == COUNT + 1


def test_a_mistake_is_2_and_nothing_is_sent(nvlm_trt, source, output):
    with source.open("a") as file:
        file.write('{"prompt": "a", "colour": "red"}\n')
    with StandIn() as server:
        shown = nvlm_trt("batch", source, output, "--url", server.url, "--json")
        assert server.asked == []
    assert shown.code == 2
    assert f"in.jsonl:{COUNT + 1}: colour: seen an unknown key" in shown.json["error"]["message"]
    for words in (
        (source.with_name("none.jsonl"), output),
        (source, output, "--url", "http://server"),
        (source, output, "--concurrency", "0"),
    ):
        assert nvlm_trt("batch", *words).code == 2, words
    assert not output.exists()


def test_a_server_that_is_not_there_is_1_and_the_output_says_nothing_false(nvlm_trt, source, output):
    with StandIn() as server:
        gone = server.url
    shown = nvlm_trt("batch", source, output, "--url", gone, "--attempts", "1")
    assert shown.code == 1
    assert "cannot be reached" in shown.err
    assert "the same command goes on from there" in shown.err
    assert output.read_bytes() == b""


def test_a_dry_run_says_what_is_missing(nvlm_trt, source, output):
    shown = nvlm_trt("batch", source, output, "--dry-run")
    assert shown.code == 0
    assert shown.out.splitlines() == [
        f"{source}: {COUNT} records, 0 images",
        f"{output}: 0 answered, 0 failed, {COUNT} to ask",
    ]
    assert not output.exists()
    with StandIn(refuse_q3) as server:
        nvlm_trt("batch", source, output, "--url", server.url)
        facts = nvlm_trt("batch", source, output, "--dry-run", "--retry-failed", "--json").json
        assert len(server.asked) == COUNT
    assert (facts["answered"], facts["failed"], facts["to_ask"]) == (COUNT - 1, 0, 1)


class Held:
    """A script that answers some requests and holds the others until it is let go."""

    def __init__(self, free: int) -> None:
        self._free, self._lock = free, threading.Lock()
        self.holding, self.go = threading.Event(), threading.Event()

    def __call__(self, asked: Asked) -> str:
        with self._lock:
            self._free -= 1
            held = self._free < 0
        if held:
            self.holding.set()
            self.go.wait(60)
        return "yes"


def started(source: Path, output: Path, url: str) -> subprocess.Popen[str]:
    # A shell starts what is in the background with interrupts ignored, and so would be what is started from there. A
    # preexec_fn would have Python fork, and what forks while gRPC's threads run may abort.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "nvlm_trt.cli.main", "batch"]
    command += [str(source), str(output), "--url", url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def stopped_by(kind: signal.Signals, source: Path, output: Path, *, after: int, hangs: bool = False) -> tuple[int, str]:
    """Run until so many requests are answered and the next ones are under way, then send a signal."""
    held = Held(after)
    with StandIn(held, hangs=hangs) as server:
        run = started(source, output, server.url)
        try:
            assert held.holding.wait(60)
            run.send_signal(kind)
            _, err = run.communicate(timeout=60)
        finally:
            run.kill()
            run.wait()
            held.go.set()
    return run.returncode, err


def test_runs_that_are_killed_again_and_again_lose_and_double_nothing(nvlm_trt, source, output):
    kept: set[object] = set()
    for after in (7, 1, 20):
        code, _ = stopped_by(signal.SIGKILL, source, output, after=after)
        assert code == -signal.SIGKILL
        whole = {json.loads(line)["id"] for line in output.read_bytes().split(b"\n")[:-1]}
        assert kept <= whole
        kept = whole
        with output.open("ab") as file:
            file.write(b'{"id": "r59", "text": "ye')  # what a kill in the middle of a write leaves
    with StandIn() as server:
        assert nvlm_trt("batch", source, output, "--url", server.url).code == 0
        assert len(server.asked) == COUNT - len(kept)
    assert sorted(record["id"] for record in records(output)) == ALL


def test_an_interrupted_run_ends_in_order_and_keeps_what_was_answered(nvlm_trt, source, output):
    code, err = stopped_by(signal.SIGINT, source, output, after=9)
    assert code == 130
    assert err == f"stopped; what was answered is in {output}, and the same command goes on from there\n"
    assert output.read_bytes().endswith(b"}\n")
    kept = len(records(output))
    assert 0 < kept <= 9
    with StandIn() as server:
        assert nvlm_trt("batch", source, output, "--url", server.url).code == 0
        assert len(server.asked) == COUNT - kept
    assert sorted(record["id"] for record in records(output)) == ALL


def test_an_interrupted_run_leaves_a_server_that_hangs_in_words_and_not_with_a_traceback(source, output):
    code, err = stopped_by(signal.SIGINT, source, output, after=9, hangs=True)
    assert code == 130
    *said, last = err.splitlines()
    assert set(said) <= {"a request that was given up could not be ended: no answer within 5 s"}
    assert last.startswith("stopped; what was answered is in")


def test_a_second_run_on_the_same_output_is_refused(nvlm_trt, source, output):
    held = Held(0)
    with StandIn(held) as server:
        first = started(source, output, server.url)
        try:
            assert held.holding.wait(60)
            shown = nvlm_trt("batch", source, output, "--url", server.url)
            assert (shown.code, "another batch writes here" in shown.err) == (2, True)
        finally:
            held.go.set()
            first.communicate(timeout=60)
    assert first.returncode == 0


PEAK = """
import sys
from pathlib import Path
from nvlm_trt.cli.main import main
code = main(sys.argv[1:])
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
sys.exit(code)
"""
"""Prints the peak of its memory, in KiB; the one of getrusage would be the parent's too."""


def test_memory_does_not_grow_with_the_number_of_lines(tmp_path):
    peaks = []
    for count in (1_000, 100_000):
        source = tmp_path / f"{count}.jsonl"
        source.write_text("".join(f'{{"id": "{i:040}", "prompt": "Why?"}}\n' for i in range(count)))
        command = [sys.executable, "-c", PEAK, "batch", str(source), str(tmp_path / "out"), "--dry-run", "--json"]
        plan, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        assert json.loads(plan)["to_ask"] == count
        peaks.append(int(peak))
    assert peaks[1] - peaks[0] < 9_000, "KiB: SQLite's cache and some room; the ids alone would take 13,000 in a set"


def test_a_log_is_told_now_and_then_with_rate_and_time_left():
    log, now = io.StringIO(), iter([0.0, 5.0, 20.0, 21.0, 40.0])
    with plain_lines(110, 10, log, lambda: next(now)) as report:
        for answered, failed in ((11, 0), (50, 0), (51, 0), (90, 2)):
            report(Tally(answered, failed))
    assert log.getvalue().splitlines() == [
        "50 of 110 records, 0 failed, 2.0/s, 30 s left",
        "92 of 110 records, 2 failed, 2.0/s, 9 s left",
    ]


def test_a_slow_rate_is_told_by_the_minute():
    assert (rate_in_words(12.34), rate_in_words(0.05)) == ("12.3/s", "3.0/min")


def test_a_terminal_has_a_bar_and_silence_has_none(capsys, monkeypatch):
    with progress_for(10, 0, silent=True) as report:
        report(Tally(1))
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress_for(10, 4, silent=False) as report:
        report(Tally(5, 1))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "6/10" in shown.err
    assert "1 failed" in shown.err

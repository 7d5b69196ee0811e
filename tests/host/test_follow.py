"""What the model processes and tritonserver write reaches the log of who started them."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nvlm_trt.host import log
from nvlm_trt.host.follow import MAX_LINE, NO_GPU, POLL_SECONDS, LogFollower
from nvlm_trt.host.log import LogFile

JSON = '{"time": "2026-11-30T07:28:25.382Z", "level": "info", "event": "answered"}'
TEXT = "2026-11-30T07:28:25.382Z INFO nvlm_trt answered"


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_lines_of_ours_pass_as_they_are_and_others_become_events(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, out = tmp_path / "log", io.StringIO()
    caplog.set_level(logging.DEBUG)
    file.write_text(f"{JSON}\nI1130 07:28:25.7 1 a.cc:1] loaded\nE1130 07:28:25.7 1 a.cc:1] bad\nhalf")
    follower = LogFollower(lambda: file, out)
    wait(lambda: len(caplog.records) == 2)
    with file.open("ab") as more:
        more.write(b" \xc3")
        more.flush()
        time.sleep(1.5 * POLL_SECONDS)
        more.write(b"\xa4 line\n%s\n\n| nvlm | 1 | READY |\n" % TEXT.encode())
    follower.stop()
    assert out.getvalue() == f"{JSON}\n{TEXT}\n"
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert told[0] == ("DEBUG", "I1130 07:28:25.7 1 a.cc:1] loaded")
    assert told[1] == ("ERROR", "E1130 07:28:25.7 1 a.cc:1] bad")
    assert told[2] == ("INFO", "half ä line")
    assert told[3] == ("DEBUG", "| nvlm | 1 | READY |")


def test_what_tritonserver_misses_without_a_gpu_is_no_error_where_none_is_needed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "log"
    caplog.set_level(logging.DEBUG)
    lines = (
        'E1130 08:54:50.6 1 server.cc:241] "CudaDriverHelper has not been initialized."',
        'W1130 08:54:53.9 1 pinned_memory_manager.cc:170] "failed to allocate pinned system memory"',
        "Error: Failed to initialize NVML",
        'E1130 08:54:53.2 1 server.cc:1] "failed to load nvlm"',
    )
    file.write_text("\n".join(lines) + "\n")
    LogFollower(lambda: file, expected=NO_GPU).stop()
    assert [record.levelname for record in caplog.records] == ["DEBUG", "DEBUG", "DEBUG", "ERROR"]
    caplog.clear()
    LogFollower(lambda: file).stop()
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING", "INFO", "ERROR"]


def test_a_server_that_is_replaced_has_another_log(tmp_path: Path) -> None:
    files, out = [tmp_path / "first"], io.StringIO()
    files[0].write_text(TEXT + "\n")
    follower = LogFollower(lambda: files[-1], out)
    wait(lambda: bool(out.getvalue()))
    second = tmp_path / "second"
    second.write_text(JSON + "\n")
    files.append(second)
    follower.stop()
    assert out.getvalue() == f"{TEXT}\n{JSON}\n"


def test_what_was_trimmed_before_it_was_read_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "KEPT_BYTES", log.STEP_BYTES)
    file, out = LogFile(tmp_path / "log"), io.StringIO()
    file.path.write_text(f"{TEXT}\n" * (3 * log.STEP_BYTES // len(TEXT)))
    file.trim()
    LogFollower(lambda: file.path, out).stop()
    assert "bytes of the server's log were left out" in caplog.records[0].getMessage()
    kept = out.getvalue().splitlines()
    assert set(kept) == {TEXT}
    assert log.STEP_BYTES // len(TEXT) * 0.9 < len(kept) < 2.1 * log.STEP_BYTES // len(TEXT)


def test_no_log_and_a_line_without_an_end_are_borne(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    LogFollower(lambda: None).stop()
    LogFollower(lambda: tmp_path / "absent").stop()
    caplog.set_level(logging.INFO)
    (tmp_path / "log").write_text("x" * (MAX_LINE + 1))
    LogFollower(lambda: tmp_path / "log").stop()
    assert len(caplog.records) == 1

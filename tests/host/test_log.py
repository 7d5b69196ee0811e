"""The log file of a server stays small while it is written and read, and its last words are found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nvlm_trt.host import log
from nvlm_trt.host.log import LogFile, last_words

LINE = b"2026-11-30T07:28:25.382Z INFO nvlm_trt answered\n"


def test_a_log_takes_the_room_of_its_end_and_no_line_of_it_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(log, "KEPT_BYTES", log.STEP_BYTES)
    file, chunk = LogFile(tmp_path / "server.log"), LINE * (log.STEP_BYTES // len(LINE) + 1)
    with file.path.open("ab", buffering=0) as written:
        for _ in range(8):
            written.write(chunk)
            file.trim()
            assert os.fstat(written.fileno()).st_blocks * 512 <= 3 * log.STEP_BYTES
        written.write(b"E1130 07:28:26.1 1 a.cc:1] gave up\n")
    everything = file.path.read_bytes()
    assert len(everything) == 8 * len(chunk) + 35
    assert everything[-35 - log.STEP_BYTES :].endswith(LINE * 1000 + b"E1130 07:28:26.1 1 a.cc:1] gave up\n")
    assert file.last_words() == "E1130 07:28:26.1 1 a.cc:1] gave up"


def test_a_log_that_is_gone_says_nothing(tmp_path: Path):
    file = LogFile(tmp_path / "gone" / "server.log")
    file.trim()
    assert file.last_words() == ""


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (
            'I1 pb_stub.cc:366] "Failed to initialize Python stub: EngineError: the repository is old; do\\n\\nAt:'
            '\\n  /x/spec.py(1): from_json\\n"\nerror: creating server: Internal - failed to load all models\n',
            "the repository is old; do",
        ),
        ("I1 fine\n+---+\n| x |\nE1 first\nerror: second\n", "E1 first / error: second"),
        ("I1 fine\nI2 gone", "I1 fine / I2 gone"),
        ("", ""),
    ],
)
def test_a_server_that_does_not_start_says_why(log, words):
    assert last_words(log) == words

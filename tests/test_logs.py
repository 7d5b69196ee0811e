"""One event a line, as text or as JSON."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from nvlm_trt.logs import Formatter, fields


def record(message: str, **more: object) -> logging.LogRecord:
    made = logging.LogRecord("a.logger", logging.WARNING, "file", 1, message, None, None)
    made.__dict__.update(fields(**more))
    return made


def test_json_has_time_level_logger_event_and_fields_on_one_line() -> None:
    line = Formatter("json").format(record("two\nlines", request_id="x", seconds=0.5, absent=None))
    assert "\n" not in line
    said = json.loads(line)
    assert said.pop("time").endswith("Z")
    assert said == {
        "level": "warning",
        "logger": "a.logger",
        "event": "two\nlines",
        "request_id": "x",
        "seconds": 0.5,
    }


def test_text_has_them_in_that_order() -> None:
    line = Formatter("text").format(record("two\nlines", request_id="a b"))
    assert line.split(" ", 1)[1] == 'WARNING a.logger two\\nlines request_id="a b"'


def test_what_was_raised_is_a_member_of_the_event() -> None:
    try:
        raise ValueError("bad")
    except ValueError:
        raised = record("failed")
        raised.exc_info = sys.exc_info()
    line = Formatter("json").format(raised)
    assert "\n" not in line
    assert json.loads(line)["trace"].endswith("ValueError: bad")


@pytest.mark.parametrize(("form", "level"), [("json", "warning"), ("text", "error"), ("", "nonsense")])
def test_the_environment_says_how_a_process_logs(form: str, level: str) -> None:
    program = "import logging; from nvlm_trt import logs; logs.set_up(); logging.info('i'); logging.error('e')"
    environment = {"NVLM_TRT_LOG_FORMAT": form, "NVLM_TRT_LOG_LEVEL": level}
    command = [sys.executable, "-c", program]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    lines = shown.stderr.splitlines()
    assert len(lines) == (2 if level == "nonsense" else 1)
    assert lines[-1].startswith("{") == (form == "json")

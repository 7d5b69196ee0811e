"""The log of all processes: one event a line, as text or as JSON.

What an event says beside its message stands in `fields` (`extra=fields(...)`). Prompts, answers, images and keys are
never among them.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

Format = Literal["text", "json"]
Level = Literal["debug", "info", "warning", "error"]

FORMAT_VARIABLE: Final = "NVLM_TRT_LOG_FORMAT"
LEVEL_VARIABLE: Final = "NVLM_TRT_LOG_LEVEL"
"""Environment variables by which the model processes learn what the server was told."""

FIELDS: Final = "nvlm_fields"


def fields(**members: object) -> dict[str, dict[str, object]]:
    """What an event says beside its message, as logging's `extra`; members that are None are left out."""
    return {FIELDS: {name: value for name, value in members.items() if value is not None}}


class Formatter(logging.Formatter):
    """One line an event, whatever is in it.

    Args:
        form: Text, or one JSON object with `time` (UTC), `level`, `logger`, `event`, the event's fields, and `trace`
            where something was raised.
    """

    converter = staticmethod(time.gmtime)

    def __init__(self, form: Format) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        at = f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}Z"
        said = {"time": at, "level": record.levelname.lower(), "logger": record.name, "event": record.getMessage()}
        told: Mapping[str, Any] = getattr(record, FIELDS, {})
        trace = {"trace": self.formatException(record.exc_info)} if record.exc_info else {}
        if self._form == "json":
            return json.dumps({**said, **told, **trace}, ensure_ascii=False, default=str)
        words = [at, record.levelname, record.name, said["event"].replace("\n", "\\n")]
        words += [f"{name}={json.dumps(value, ensure_ascii=False, default=str)}" for name, value in told.items()]
        return " ".join(words) + "".join(f"\n{text}" for text in trace.values())


def set_up() -> None:
    """Write the process's log to stderr as the environment says: text from level info on, unless told otherwise."""
    form, level = os.environ.get(FORMAT_VARIABLE, "text"), os.environ.get(LEVEL_VARIABLE, "info")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter("json" if form == "json" else "text"))
    logging.basicConfig(level=level.upper() if level in get_args(Level) else "INFO", handlers=[handler])
    for library in ("opentelemetry", "urllib3", "asyncio", "uvicorn"):
        logging.getLogger(library).setLevel(logging.WARNING)

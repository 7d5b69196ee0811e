"""Durations on command lines: 90s, 5m, 1h, 1d."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def duration(least: int) -> Callable[[str], int]:
    """Reads a duration of at least `least` seconds, as argparse wants it."""

    def read(text: str) -> int:
        match = re.fullmatch(r"(\d{1,6})([smhd])", text)
        seconds = int(match[1]) * UNITS[match[2]] if match else 0
        if seconds < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no duration of {least} s or more, such as 5m, 1h or 1d")
        return seconds

    return read

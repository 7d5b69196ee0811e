"""What long work reports: progress, bytes done of bytes in all, and lines for a person."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all); cheap enough to be called once a tensor.

Where a run goes on after one that was stopped, what that one did is among the bytes done from the first call on.
"""

Log = Callable[[str], None]
"""Told one line for a person."""

"""The one shape of progress that long work reports: bytes done of bytes in all."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all); cheap enough to be called once a tensor.

Where a run goes on after one that was stopped, what that one did is among the bytes done from the first call on.
"""

"""Bars of counted things on stderr."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


def counting_bars(*facts: str, silent: bool = False, speed_over: float = 30.0) -> Progress:
    """Bars that tell how many of how many, the time gone and the time left; they vanish when they end.

    Args:
        facts: Texts between the count and the times, which may name fields of a task.
        silent: Show nothing.
        speed_over: Seconds over which the speed is taken that the time left comes from.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        *(TextColumn(fact) for fact in facts),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=silent,
        speed_estimate_period=speed_over,
    )

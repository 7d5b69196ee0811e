"""The figures as a page of a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nvlm_trt.top.figures import Figures

ABSENT = "-"


def page(address: str, figures: Figures | None, trouble: str = "") -> RenderableType:
    """The page.

    Args:
        address: Of the server.
        figures: What is known of it; None before the first answer.
        trouble: Why it cannot be read now; empty where it can.
    """
    if figures is None:
        return Group(_head(address, None, trouble))
    panels = Table.grid(expand=True, padding=(0, 1, 0, 0))
    panels.add_column(ratio=1)
    panels.add_column(ratio=1)
    panels.add_row(_panel("requests", _requests(figures)), _panel("latency of streams", _latency(figures)))
    panels.add_row(_panel("engine", _engine(figures)), _panel("caches", _caches(figures)))
    panels.add_row(_panel("failures", _failures(figures)), _panel("memory", _memory(figures.memory)))
    return Group(_head(address, figures, trouble), panels)


def _head(address: str, figures: Figures | None, trouble: str) -> Text:
    head = Text.assemble(("nvlm-trt top", "bold"), f"  {address}")
    if trouble:
        return head.append(f"  {trouble}", "bold red")
    if figures is not None:
        state = {True: ("ready", "green"), False: ("not ready", "bold red"), None: ("", "")}[figures.ready]
        head.append(f"  {figures.engine}  ").append(*state)
        head.append(f"  last {figures.window:.0f} s", "dim")
    return head


def _panel(title: str, rows: Mapping[str, RenderableType]) -> Panel:
    grid = Table.grid(expand=True, padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(ratio=1)
    for name, value in rows.items():
        grid.add_row(name, value)
    return Panel(grid, title=title, title_align="left", border_style="dim", height=max(len(rows), 6) + 2)


def _requests(figures: Figures) -> dict[str, RenderableType]:
    total = sum(figures.requests.values())
    states = "  ".join(f"{status}: {rate:.2f}" for status, rate in sorted(figures.requests.items()))
    return {
        "requests/s": Text(f"{total:.2f}", "bold"),
        "by status": states or ABSENT,
        "working": _whole(figures.working),
        "waiting": _whole(figures.waiting),
        "expected wait": _seconds(figures.expected_wait),
        "waited, p99": _seconds(figures.queue_p99),
    }


def _latency(figures: Figures) -> dict[str, RenderableType]:
    return {
        "first token, p50": Text(_seconds(figures.first_token[0]), "bold"),
        "first token, p99": _seconds(figures.first_token[1]),
        "between, p50": Text(_seconds(figures.between_tokens[0]), "bold"),
        "between, p99": _seconds(figures.between_tokens[1]),
    }


def _engine(figures: Figures) -> dict[str, RenderableType]:
    return {
        "answer tokens/s": Text(_rate(figures.answer_tokens), "bold"),
        "prompt tokens/s": _rate(figures.prompt_tokens),
        "tiles/s": _rate(figures.tiles),
        "tokens a step": _rate(figures.batch),
        "decoder busy": _bar(figures.busy),
    }


def _caches(figures: Figures) -> dict[str, RenderableType]:
    return {
        "KV blocks in use": _bar(figures.kv_used),
        "KV blocks": _whole(figures.kv_blocks),
        "prompt reused": _bar(figures.kv_reused),
        "vision cache": _bar(figures.vision_used),
        "tiles reused": _bar(figures.vision_hits),
    }


def _failures(figures: Figures) -> dict[str, RenderableType]:
    worst = sorted(figures.refused.items(), key=lambda one: -one[1])[:4]
    restarts = "  ".join(f"{why}: {count:.0f}" for why, count in figures.restarts.items())
    return {
        "cancelled/s": _rate(figures.cancelled),
        "restarts": Text(restarts, "bold red") if restarts else "none",
        **{f"{why}/s": Text(f"{rate:.2f}", "yellow") for why, rate in worst},
    }


def _memory(memory: Mapping[str, float]) -> dict[str, RenderableType]:
    largest = sorted(memory.items(), key=lambda one: -one[1])[:8]
    return {name: f"{size / 2**20:,.0f} MiB" for name, size in largest} or {"": ABSENT}


def _bar(share: float | None) -> RenderableType:
    if share is None:
        return ABSENT
    row = Table.grid(expand=True, padding=(0, 1, 0, 0))
    row.add_column(width=5, justify="right")
    row.add_column(ratio=1)
    full = "red" if share > 0.9 else "green"
    row.add_row(f"{share:.0%}", ProgressBar(1.0, min(share, 1.0), complete_style=full, finished_style=full))
    return row


def _whole(value: float | None) -> str:
    return ABSENT if value is None else f"{value:,.0f}"


def _rate(value: float | None) -> str:
    return ABSENT if value is None else f"{value:,.1f}"


def _seconds(value: float | None) -> str:
    if value is None:
        return ABSENT
    return f"{value * 1000:,.1f} ms" if value < 1 else f"{value:,.2f} s"

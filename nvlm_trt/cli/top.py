"""`nvlm-trt top`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nvlm_trt.top.figures import Figures


def top(
    url: Annotated[str, typer.Argument(help="HOST:PORT or URL of the server's HTTP, or of its metrics.")] = (
        "127.0.0.1:8000"
    ),
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds from look to look.")] = 2.0,
    window: Annotated[float, typer.Option(min=0.1, help="Seconds that rates and percentiles are of.")] = 30.0,
    once: Annotated[bool, typer.Option("--once", help="Look twice, an interval apart, print, and end.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print each look as one JSON object on a line.")] = False,
) -> None:
    """Watch a running server: requests, latency, queue, engine, caches, failures, memory.

    A server that cannot be reached is tried until it can; with --once that is an error.
    """
    import contextlib
    import dataclasses

    from rich.console import Console
    from rich.live import Live

    from nvlm_trt.cli.output import print_json
    from nvlm_trt.top.source import metrics_url
    from nvlm_trt.top.view import page

    address, console = metrics_url(url), Console()
    looks = _looks(address, interval, window, once=once)
    if json:
        for figures, trouble in looks:
            known = dataclasses.asdict(figures) if figures is not None else {}
            print_json({"url": address, "trouble": trouble or None, **known})
        return
    if once or not console.is_terminal:
        for figures, trouble in looks:
            console.print(page(address, figures, trouble))
        return
    first = page(address, None)
    with contextlib.suppress(KeyboardInterrupt), Live(first, console=console, screen=True, auto_refresh=False) as live:
        for figures, trouble in looks:
            live.update(page(address, figures, trouble), refresh=True)


def _looks(address: str, interval: float, seconds: float, *, once: bool) -> Iterator[tuple[Figures | None, str]]:
    """What is known after each look, and what kept the last one from telling more.

    Raises:
        ServerError: once, and the server cannot be read.
    """
    import time

    from nvlm_trt.errors import ServerError
    from nvlm_trt.top.figures import Figures
    from nvlm_trt.top.source import read_page
    from nvlm_trt.top.window import Window

    window = Window(seconds)
    figures: Figures | None = None
    if once:
        for pause in (interval, 0.0):
            window.add(read_page(address))
            time.sleep(pause)
        yield Figures.of(window), ""
        return
    lost: float | None = None
    while True:
        trouble = ""
        try:
            window.add(read_page(address))
            figures, lost = Figures.of(window), None
        except ServerError as error:
            lost = lost or time.monotonic()
            trouble = f"{error.what} for {time.monotonic() - lost:.0f} s ({error.seen}); trying again"
        yield figures, trouble
        time.sleep(interval)

"""`nvlm-trt serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve(
    engine_dir: Annotated[Path, typer.Argument(help="An engine directory.")],
    http_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of HTTP; 0 takes a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of gRPC; 0 takes a free one.")] = 8001,
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of metrics; 0 takes a free one.")] = 8002,
    host: Annotated[str, typer.Option(help="Address to listen on; any other needs a proxy in front.")] = "127.0.0.1",
    grace: Annotated[float, typer.Option(min=0, help="Seconds for requests under way when stopping.")] = 15.0,
    hang_timeout: Annotated[float, typer.Option(min=1, help="Seconds without a sign of life that mean hung.")] = 15.0,
    start_timeout: Annotated[float, typer.Option(min=1, help="Seconds until the server must be ready.")] = 180.0,
    json: Annotated[bool, typer.Option("--json", help="Print each event as one JSON object on a line.")] = False,
) -> None:
    """Start the Triton server on an engine directory and keep it alive until SIGTERM or Ctrl-C."""
    import signal
    import sys
    import threading

    from nvlm_trt.cli.output import print_json
    from nvlm_trt.serving.host.ports import Ports
    from nvlm_trt.serving.host.server import TritonServer
    from nvlm_trt.serving.host.supervisor import ServerEvent

    asked = threading.Event()

    def stop(*_: object) -> None:
        asked.set()
        if not server.is_ready:
            server.ask_to_stop()

    def show(event: ServerEvent) -> None:
        where = {"http": server.http_url, "grpc": server.grpc_url, "metrics": server.metrics_url}
        if json:
            detail = {"detail": event.detail} if event.detail else {}
            print_json({"event": event.kind, **(where if event.kind == "ready" else {}), **detail})
        elif event.kind == "ready":
            typer.echo("ready: " + ", ".join(f"{name} {url}" for name, url in where.items()))
        else:
            typer.echo(f"{event.kind}: {event.detail}" if event.detail else event.kind)
        sys.stdout.flush()

    server = TritonServer(
        engine_dir,
        host=host,
        ports=Ports(http_port, grpc_port, metrics_port),
        on_event=show,
        start_timeout=start_timeout,
        hang_timeout=hang_timeout,
        grace=grace,
    )
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, stop)
    with server:
        while not asked.wait(0.2) and not server.wait(0):
            continue

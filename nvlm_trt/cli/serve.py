"""`nvlm-trt serve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from nvlm_trt.gateway.settings import GatewaySettings
    from nvlm_trt.host.nodes import Nodes
    from nvlm_trt.host.ports import Ports
    from nvlm_trt.host.server import TritonServer
    from nvlm_trt.host.supervisor import ServerEvent


def serve(
    engine_dir: Annotated[Path, typer.Argument(help="An engine directory.")],
    http_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of HTTP; 0 takes a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of gRPC; 0 takes a free one.")] = 8001,
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of metrics; 0 takes a free one.")] = 8002,
    host: Annotated[str, typer.Option(help="Address to listen on; any other needs a proxy in front.")] = "127.0.0.1",
    grace: Annotated[float, typer.Option(min=0, help="Seconds for requests under way when stopping.")] = 15.0,
    hang_timeout: Annotated[float, typer.Option(min=1, help="Seconds without a sign of life that mean hung.")] = 8.0,
    max_growth: Annotated[
        int | None,
        typer.Option(min=1, help="MiB by which a process may grow; more is a leak. Default: 3/4 of the free memory."),
    ] = None,
    start_timeout: Annotated[
        float | None, typer.Option(min=1, help="Seconds until the server must be ready; cpu: 180, gpu: 3600.")
    ] = None,
    hostfile: Annotated[
        Path | None,
        typer.Option(help="An OpenMPI hostfile, for ranks on several nodes, HOST slots=GPUS each; this one first."),
    ] = None,
    gateway: Annotated[
        bool,
        typer.Option("--gateway/--no-gateway", help="HTTP through the gateway, or tritonserver's own on loopback."),
    ] = True,
    api_keys: Annotated[
        Path | None, typer.Option(help="A file of API keys, one a line; NVLM_TRT_API_KEYS may hold some too.")
    ] = None,
    image_domain: Annotated[
        list[str] | None, typer.Option(help="A domain to fetch images from: host, host:port or *.host; repeatable.")
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            help="A limit of the gateway, NAME=VALUE; repeatable. --dry-run shows all, docs/gateway.md tells."
        ),
    ] = None,
    otlp_endpoint: Annotated[
        str | None, typer.Option(help="URL of an OpenTelemetry collector (OTLP over HTTP) that traces are sent to.")
    ] = None,
    log_format: Annotated[
        Literal["text", "json"],
        typer.Option(envvar="NVLM_TRT_LOG_FORMAT", help="How events of the log are written to stderr, one a line."),
    ] = "text",
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        typer.Option(envvar="NVLM_TRT_LOG_LEVEL", help="Events of the log from this level on."),
    ] = "info",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the command that would run; start nothing.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print each event as one JSON object on a line.")] = False,
) -> None:
    """Start the Triton server on an engine directory and keep it alive until SIGTERM or Ctrl-C.

    Clients meet a gateway: OpenAI's API below /v1, KServe's below /v2, limits and API keys (docs/gateway.md).

    Engines for GPUs are served inside NVIDIA's image: every rank of the decoder is a process under mpirun. In a pod of
    a Kubernetes LeaderWorkerSet the ranks run on all pods of its group.
    """
    import os
    import threading

    from nvlm_trt import logs, tracing
    from nvlm_trt.collector import set_aside
    from nvlm_trt.environment.built_with import read_records, require_match
    from nvlm_trt.environment.seen import look
    from nvlm_trt.errors import RequestError
    from nvlm_trt.gateway.settings import GatewaySettings, Limits, check_domains, read_keys
    from nvlm_trt.host.engine import ServedEngine
    from nvlm_trt.host.follow import NO_GPU, LogFollower
    from nvlm_trt.host.nodes import Nodes
    from nvlm_trt.host.ports import Ports
    from nvlm_trt.host.server import TritonServer
    from nvlm_trt.host.signals import on_signals

    ports = Ports(http_port, grpc_port, metrics_port)
    ports.check()
    growth = max_growth and max_growth << 20
    engine = ServedEngine.open(engine_dir)
    recipe = engine.recipe
    nodes = (
        Nodes.of_group(os.environ)
        if hostfile is None
        else Nodes.of_file(hostfile, engine.world_size, recipe.gpus_per_node)
    )
    endpoint = None if otlp_endpoint is None else tracing.check_endpoint(otlp_endpoint)
    if not dry_run and recipe.target == "gpu" and (records := read_records(engine_dir)):
        require_match(records, look())
    settings = None
    if gateway:
        limits = Limits.of(recipe).changed(limit or ())
        settings = GatewaySettings(limits, read_keys(api_keys), check_domains(image_domain or ()), api_keys)
    elif read_keys(api_keys) or image_domain or limit:
        raise RequestError("with --no-gateway nobody heeds API keys, --image-domain and --limit", fix="leave them out")
    if dry_run:
        _print_plan(engine_dir, nodes, host, ports, grace, hang_timeout, growth, settings, json=json)
        return
    # The environment, as the model processes have to know too.
    os.environ |= {logs.FORMAT_VARIABLE: log_format, logs.LEVEL_VARIABLE: log_level}
    if endpoint is not None:
        os.environ[tracing.ENDPOINT] = endpoint
    logs.set_up()
    engine.check_repository()
    asked = threading.Event()

    def stop() -> None:
        server.ask_to_stop()  # first: the server is stopped when `asked` is set, and would take this for a second time
        asked.set()

    server = TritonServer(
        engine_dir,
        host=host,
        ports=ports,
        on_event=lambda event: _show(event, server, json=json),
        nodes=nodes,
        gateway=settings,
        with_gateway=gateway,
        start_timeout=start_timeout,
        hang_timeout=hang_timeout,
        grace=grace,
        max_growth=growth,
    )
    on_signals(stop)
    follower = LogFollower(lambda: server.log, expected=NO_GPU if recipe.target == "cpu" else None)
    try:
        with server:
            set_aside()
            while not asked.wait(0.05) and not server.wait(0):
                continue
    finally:
        follower.stop()


def _print_plan(
    engine_dir: Path,
    nodes: Nodes,
    host: str,
    ports: Ports,
    grace: float,
    hang_timeout: float,
    max_growth: int | None,
    settings: GatewaySettings | None,
    *,
    json: bool,
) -> None:
    from dataclasses import replace

    from nvlm_trt.cli.output import print_json
    from nvlm_trt.host.dry_run import LaunchPlan
    from nvlm_trt.host.engine import ServedEngine
    from nvlm_trt.loopback import LOOPBACK

    engine = ServedEngine.open(engine_dir)
    options = engine.options(
        settings.inner_host(host) if settings else host,
        replace(ports, http=0) if settings else ports,  # behind the gateway HTTP has a port that the start chooses
        nodes,
        start_timeout=None,
        hang_timeout=hang_timeout,
        grace=grace,
        max_growth=max_growth,
        max_body=settings.limits.max_body if settings else None,
    )
    plan = LaunchPlan.of(options, engine.recipe.target)
    if json:
        print_json(
            {
                "target": engine.recipe.target,
                "world_size": options.world_size,
                "directory": str(plan.directory),
                "command": plan.command,
                "load_order": plan.load_order,
                "gateway": settings and settings.shown(),
            }
        )
    else:
        typer.echo("\n".join(plan.lines()))
        if settings is not None:
            facts = ", ".join(f"{name} {'none' if fact is None else fact}" for name, fact in settings.shown().items())
            typer.echo(f"HTTP_PORT: a free port of {LOOPBACK}, chosen at each start", err=True)
            typer.echo(f"gateway on {host}:{ports.http} in front of it: {facts}", err=True)


def _show(event: ServerEvent, server: TritonServer, *, json: bool) -> None:
    import logging

    from nvlm_trt.cli.output import json_line
    from nvlm_trt.logs import fields

    level = logging.INFO if event.kind in ("ready", "draining", "stopped") else logging.ERROR
    facts = {name: fact for name, fact in {"reason": event.reason, "detail": event.detail}.items() if fact}
    logging.getLogger(__name__).log(level, "server %s", event.kind, extra=fields(**facts))
    where = {"http": server.http_url, "grpc": server.grpc_url, "metrics": server.metrics_url}
    if json:
        _tell(json_line({"event": event.kind, **(where if event.kind == "ready" else {}), **facts}))
    elif event.kind == "ready":
        _tell("ready: " + ", ".join(f"{name} {url}" for name, url in where.items()))
    else:
        _tell(": ".join(filter(None, (event.kind, event.reason, event.detail))))


def _tell(line: str) -> None:
    """Write a line to who reads the events; once nobody can, to nobody: the server goes on, and the log has them."""
    import sys

    from nvlm_trt.pipeline.progress import to_nobody

    try:
        typer.echo(line)
    except OSError:  # a closed pipe, a full disk, a terminal that went away
        to_nobody(sys.stdout)

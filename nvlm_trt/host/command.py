"""The command line of tritonserver: one process, or in leader mode one for each rank of the decoder under mpirun.

Leader mode is that of TensorRT-LLM's scripts/launch_triton_server.py: rank 0 is the server that clients reach, the
other ranks load `tensorrt_llm` alone and take their work from rank 0's executor.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from nvlm_trt.errors import EngineError
from nvlm_trt.host.environment import Installation
from nvlm_trt.host.nodes import Nodes
from nvlm_trt.host.ports import Ports
from nvlm_trt.loopback import LOOPBACK

RESTRICTED_APIS = "model-repository,shared-memory,logging,trace"
ADMIN_HEADER = "nvlm-admin"
RANK_MODEL = "tensorrt_llm"
"""The model that runs on every rank."""

LAUNCHER = "mpirun"

EXPORTED = ("PATH", "LD_LIBRARY_PATH")
"""Variables that ranks on other nodes need; mpirun passes all of them on on its own node only. `-x` is of one program,
so each rank has its own (seen with Open MPI 4.1.4)."""

FULL_NAMES = ("--mca", "orte_keep_fqdn_hostnames", "1")
"""Open MPI 4 cuts names of hosts at the first dot, unless told not to (open-mpi/ompi, orte/runtime/orte_mca_params.c;
issue 12089); a pod has no address without its domain."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How a server runs; times in seconds.

    Attributes:
        repository: The model repository.
        host: Address of gRPC and metrics; HTTP is on loopback, for the gateway. Not hardened: another than loopback
            needs a proxy in front.
        ports: Its ports; none of them is 0, except to show a command whose ports are not chosen yet.
        max_body_bytes: Largest HTTP body.
        world_size: The decoder's ranks, tp * pp; 1 where it runs in the server's own process.
        nodes: Where they run.
        gpus_per_node: GPUs of each node, as the engines were built for: rank r computes on GPU r modulo this.
        load_order: Models that are loaded one after the other once the server runs; empty for all of the repository,
            at its start.
        start_timeout: From the start to readiness.
        hang_timeout: A process without a sign of life, or whose work stands still, for so long is hung.
        grace: From the request to stop to the end by force; requests under way may finish meanwhile.
        max_growth: Bytes by which a process may grow once the server is ready, before it counts as leaking; None for
            three quarters of the memory that is at hand then.
        niceness: By how much tritonserver and its models stand back where cores are short.
    """

    repository: Path
    host: str
    ports: Ports
    max_body_bytes: int
    world_size: int = 1
    nodes: Nodes = field(default_factory=Nodes)
    gpus_per_node: int = 8
    load_order: tuple[str, ...] = ()
    start_timeout: float = 180.0
    hang_timeout: float = 8.0
    grace: float = 15.0
    max_growth: int | None = None
    niceness: int = 0


def require_launcher(options: ServerOptions) -> None:
    """Look whether what starts several ranks is installed.

    Raises:
        EngineError: it is not.
    """
    if options.world_size > 1 and shutil.which(LAUNCHER) is None:
        fix = "serve inside NVIDIA's image, which has OpenMPI"
        raise EngineError(f"{LAUNCHER} is not on PATH", expected=f"it starts {options.world_size} ranks", fix=fix)


def server_command(
    installation: Installation, options: ServerOptions, *, backends: Path, shm_prefix: str, admin_key: str
) -> list[str]:
    """The command that starts the server; run it in the engine directory, where the decoder's engine is looked for.

    Args:
        installation: The installed tritonserver.
        options: How it runs.
        backends: Directory of the backends.
        shm_prefix: How the names of shared memory regions begin.
        admin_key: What `nvlm-admin` has to say in calls of the restricted APIs. tritonserver 2.51 takes it from nowhere
            else: whoever sees the machine's processes reads it.
    """
    binary = str(installation.binary)
    limit = [f"--http-max-input-size={options.max_body_bytes}"] if installation.limits_bodies else []
    serving = [
        binary,
        *_common_flags(options, backends),
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        "--model-control-mode=explicit",  # so that models can be unloaded, too: no new requests, a drain
        *([] if options.load_order else ["--load-model=*"]),
        *limit,
        *_endpoint_flags(options, f"{RESTRICTED_APIS}:{ADMIN_HEADER}={admin_key}"),
    ]
    if options.world_size == 1:
        return serving
    placement = _placement(options)
    # Called by its path, mpirun looks for its own programs on other nodes in the same place.
    launcher = (shutil.which(LAUNCHER) or LAUNCHER) if options.nodes.are_several else LAUNCHER
    exported = [word for name in EXPORTED for word in ("-x", name)] if options.nodes.are_several else []
    one = ["-n", "1", *exported]
    command = [launcher, "--allow-run-as-root", *placement, *one, *serving]
    for rank in range(1, options.world_size):
        command += [
            *(":", *one, binary),
            *_common_flags(options, backends),
            f"--backend-config=python,shm-region-prefix-name={shm_prefix}rank{rank}_",
            *("--model-control-mode=explicit", f"--load-model={RANK_MODEL}"),
            *("--allow-http=false", "--allow-grpc=false", "--allow-metrics=false"),
        ]
    return command


def _placement(options: ServerOptions) -> list[str]:
    nodes, world_size = options.nodes, options.world_size
    # By default mpirun ties each rank to some cores, and with rank 0 all processes that decode images.
    placement = ["--bind-to", "none"]
    if not nodes.are_several:
        return placement
    if nodes.hostfile is not None:
        placement += ["--hostfile", str(nodes.hostfile)]
    else:
        slots, rest = divmod(world_size, len(nodes.hosts))
        if rest:
            raise EngineError(
                "the ranks cannot be dealt out evenly",
                seen=f"{world_size} ranks, {len(nodes.hosts)} nodes",
                fix="use a number of nodes that divides tp * pp",
            )
        if slots != options.gpus_per_node:
            raise EngineError(
                "the engines were built for nodes of another size: ranks would ask for GPUs that are not there",
                seen=f"{slots} ranks a node",
                expected=f"{options.gpus_per_node}, the recipe's gpus_per_node",
                fix=f"use other nodes, or build again with gpus_per_node: {slots}",
            )
        placement += ["--host", ",".join(f"{host}:{slots}" for host in nodes.hosts)]
    return [*placement, *FULL_NAMES, "--map-by", "slot"]


def _common_flags(options: ServerOptions, backends: Path) -> list[str]:
    return [
        f"--model-repository={options.repository}",
        f"--backend-directory={backends}",
        "--disable-auto-complete-config",
        f"--exit-timeout-secs={max(1, int(options.grace))}",
    ]


def _endpoint_flags(options: ServerOptions, restricted: str) -> list[str]:
    http, grpc, metrics = options.ports.words()
    return [
        "--strict-readiness=true",
        f"--http-address={LOOPBACK}",
        f"--http-port={http}",
        f"--http-restricted-api={restricted}",
        f"--grpc-address={options.host}",
        f"--grpc-port={grpc}",
        f"--grpc-restricted-protocol={restricted}",
        f"--metrics-address={options.host}",
        f"--metrics-port={metrics}",
    ]

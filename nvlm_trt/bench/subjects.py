"""Who is measured: engine directories, in this process or served, running servers, the torch reference, and peers."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from nvlm_trt.bench.peers.engines import PEERS, PeerName
from nvlm_trt.bench.record import Device, Frozen
from nvlm_trt.bench.work import REFERENCE_DTYPES
from nvlm_trt.client.address import check_address
from nvlm_trt.engine_files import SERVED_FILES, engine_recipe
from nvlm_trt.environment.gpus import find_gpus
from nvlm_trt.errors import EngineError, UserError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.config import NvlmConfig, load_config
from nvlm_trt.pipeline.manifest import load_manifest, recorded_checkpoint
from nvlm_trt.recipe import BuildRecipe

Transport = Literal["local", "grpc", "http"]
Dtype = Literal["bf16", "fp32"]
Kind = Literal["engine", "server", "reference", "peer"]

NO_BASELINE: Final = "leave the baseline out with --baseline none"
GPU_ROOM_BYTES: Final = 4 << 30
"""Beside the reference's weights, for its KV cache, its activations and CUDA itself."""


class EngineSubject(Frozen):
    """An engine directory, loaded for each round.

    Attributes:
        kind: What this is.
        name: Tells it from the others.
        transport: In the worker's own process, or through a server that is started for it.
        engine: The directory.
        device: Where it computes.
    """

    kind: Literal["engine"] = "engine"
    name: str
    transport: Transport
    engine: Path
    device: Device = "cpu"


class ServerSubject(Frozen):
    """A server that runs already.

    Attributes:
        kind: What this is.
        name: Tells it from the others.
        transport: How it is asked.
        url: ``host:port`` of that transport.
    """

    kind: Literal["server"] = "server"
    name: str
    transport: Literal["grpc", "http"]
    url: str


class ReferenceSubject(Frozen):
    """The torch reference, loaded for each round.

    Attributes:
        kind: What this is.
        name: Tells it from the others.
        transport: In the worker's own process.
        checkpoint: What it reads.
        dtype: Of weights and arithmetic.
        engine: The engine directory whose recipe says how images are cut.
        device: Where it computes: where the engines do.
    """

    kind: Literal["reference"] = "reference"
    name: str
    transport: Literal["local"] = "local"
    checkpoint: Path
    dtype: Dtype
    engine: Path
    device: Device = "cpu"


class PeerSubject(Frozen):
    """An engine of others, loaded for each round in an environment of its own.

    Attributes:
        kind: What this is.
        name: Tells it from the others.
        transport: In a process of its own, without a server.
        peer: Which.
        folder: Where the environments of all peers lie.
        checkpoint: What it reads.
        engine: The engine directory whose recipe says how images are cut and how much it takes.
        device: Where it computes.
    """

    kind: Literal["peer"] = "peer"
    name: str
    transport: Literal["local"] = "local"
    peer: PeerName
    folder: Path
    checkpoint: Path
    engine: Path
    device: Literal["cpu"] = "cpu"

    @property
    def reads_images(self) -> bool:
        """Whether it can be asked about images."""
        return PEERS[self.peer].images


Subject = Annotated[EngineSubject | ServerSubject | ReferenceSubject | PeerSubject, Field(discriminator="kind")]
"""One column of the report."""


class OpenedEngine:
    """What an engine directory says of itself, without loading it.

    Args:
        directory: ``engines/<recipe>``.

    Raises:
        EngineError: it is no engine directory, or not complete.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.recipe: BuildRecipe = engine_recipe(directory)
        self.parts = SERVED_FILES[self.recipe.target]
        missing = [name for name in self.parts if not (directory / name).exists()]
        if missing:
            raise EngineError(
                "the engine directory is not complete",
                seen=f"{directory} without {', '.join(missing)}",
                fix="run nvlm-trt build again",
            )
        self.config: NvlmConfig = load_config(directory)

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.directory.resolve().name

    @property
    def device(self) -> Device:
        """Where the engines compute."""
        return "cuda" if self.recipe.target == "gpu" else "cpu"

    @property
    def precision(self) -> str:
        """Both precisions, in words."""
        return f"vision {self.recipe.vision_precision}, decoder {self.recipe.decoder_precision}"

    @property
    def size_bytes(self) -> int:
        """Bytes of the files that serving reads, without what they were compiled from."""
        return sum(size_of(self.directory / name) for name in self.parts)

    @property
    def checkpoint(self) -> Path:
        """Where the checkpoint lay when it was built."""
        return recorded_checkpoint(self.directory)

    @property
    def checkpoint_fingerprint(self) -> str | None:
        """Digest of the checkpoint that it was built from."""
        found = load_manifest(self.directory).checkpoint.get("fingerprint")
        return None if found is None else str(found)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in files_below(path))


def files_below(folder: Path) -> Iterable[Path]:
    """All files below a folder."""
    return (path for path in folder.rglob("*") if path.is_file())


def choose_subjects(
    engines: Sequence[OpenedEngine],
    *,
    transports: Sequence[Transport],
    baselines: Sequence[Dtype],
    checkpoint: Path | None,
    served: Collection[str] | None = None,
    grpc_url: str | None = None,
    http_url: str | None = None,
) -> tuple[Subject, ...]:
    """The columns of the report, the baseline first.

    Args:
        engines: Engine directories.
        transports: How each is asked: in a process of its own, or through a server that is started for it.
        baselines: Dtypes of the torch reference.
        checkpoint: What the reference reads; None for what the first engine was built from.
        served: Names of the engine directories that servers are started for; None for all.
        grpc_url: ``host:port`` of the gRPC of a server that runs already.
        http_url: ``host:port`` of its HTTP.

    Raises:
        UserError: there is nobody to measure, two of them have one name, one cannot be asked that way, one that is to
            be served is not among them, the reference's checkpoint is not there, or an address is none.
    """
    known = {engine.name for engine in engines}
    if strangers := sorted(set(served or ()) - known):
        raise UserError("there is no such engine to serve", seen=strangers[0], expected=", ".join(sorted(known)))
    subjects: list[Subject] = [_reference(engines[0], dtype, checkpoint) for dtype in baselines] if engines else []
    for engine in engines:
        for transport in transports:
            if transport != "local" and served is not None and engine.name not in served:
                continue
            if transport == "local" and engine.recipe.target == "gpu":
                raise UserError(
                    "engines of the gpu target run inside a server", seen=engine.directory, fix="--transport grpc"
                )
            name = engine.name if transport == "local" else f"{engine.name} ({transport})"
            engine_dir, device = engine.directory, engine.device
            subjects.append(EngineSubject(name=name, transport=transport, engine=engine_dir, device=device))
    if grpc_url is not None:
        check_address(grpc_url)
        subjects.append(ServerSubject(name=f"{grpc_url} (grpc)", transport="grpc", url=grpc_url))
    if http_url is not None:
        check_address(http_url, "HTTP")
        subjects.append(ServerSubject(name=f"{http_url} (http)", transport="http", url=http_url))
    if not subjects:
        raise UserError("there is nothing to measure", fix="give engine directories, --url or --http-url")
    names = [subject.name for subject in subjects]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError("two engine directories have one name", seen=", ".join(twice), fix="rename one")
    return tuple(subjects)


def checkpoint_of(engine: OpenedEngine, given: Path | None, who: str, otherwise: str) -> Path:
    """What is read beside an engine: the checkpoint given, or the one it was built from.

    Raises:
        UserError: it is not there; told of `who`, and what to do `otherwise`.
    """
    read = given or engine.checkpoint
    if not (read / "config.json").is_file():
        raise UserError(
            f"the checkpoint that {who} is not there", seen=read, fix=f"give it with --checkpoint, or {otherwise}"
        )
    return read


def _reference(engine: OpenedEngine, dtype: Dtype, checkpoint: Path | None) -> ReferenceSubject:
    read = checkpoint_of(engine, checkpoint, "the baseline reads", NO_BASELINE)
    if engine.device == "cuda":
        _check_fits_gpu(read, dtype)
    return ReferenceSubject(
        name=f"torch {dtype}", checkpoint=read, dtype=dtype, engine=engine.directory, device=engine.device
    )


def _check_fits_gpu(checkpoint: Path, dtype: Dtype) -> None:
    """Look whether the first GPU holds a checkpoint; on the CPU the reference of such engines would take days.

    Raises:
        UserError: it does not, or there is no GPU.
        CheckpointError: the checkpoint cannot be read.
    """
    report = find_gpus()
    if not report.gpus:
        raise UserError("the baseline of engines of the gpu target needs a GPU", seen=report.fault, fix=NO_BASELINE)
    gpu = report.gpus[0]
    elements = sum(math.prod(info.shape) for info in Checkpoint.open(checkpoint).tensors.values())
    needed = elements * REFERENCE_DTYPES[dtype].torch.itemsize + GPU_ROOM_BYTES
    if gpu.memory_bytes is not None and needed > gpu.memory_bytes:
        raise UserError(
            f"the baseline in {dtype} does not fit the GPU",
            seen=f"{needed / 2**30:.1f} GiB, {GPU_ROOM_BYTES >> 30} of them room to compute in",
            expected=f"at most {gpu.memory_bytes / 2**30:.1f} GiB ({gpu.name})",
            fix=NO_BASELINE,
        )

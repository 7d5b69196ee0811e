"""Engines of others that are measured beside ours, each in an environment of its own that scripts/peers.sh makes."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from nvlm_trt.errors import UserError

PeerName = Literal["hf", "vllm", "vllm-eager", "openvino-genai", "openvino-genai-int8"]
PeerPrecision = Literal["bf16", "int8"]

INSTALLED: Final = "installed"
"""The file that scripts/peers.sh leaves in an environment at its end."""

CONVERTER: Final = "optimum-intel"
"""The environment that converts a decoder for OpenVINO GenAI: it wants older libraries than the others."""


@dataclass(frozen=True, slots=True)
class PeerEngine:
    """One of them.

    Attributes:
        environment: Its folder below that of all peers.
        module: Which file of `workers` serves it.
        title: Its name in the report.
        precision: Of its weights.
        images: Whether it reads images; otherwise it is asked for text alone.
        eager: Of vLLM, whether it runs without compiling.
        converted: Whether the decoder is converted for it first.
    """

    environment: str
    module: str
    title: str
    precision: PeerPrecision
    images: bool
    eager: bool = False
    converted: bool = False

    @property
    def words(self) -> str:
        """What it is, for the report."""
        kept = "bf16" if self.precision == "bf16" else "int8 weights, bf16 arithmetic"
        return f"vision and decoder {kept}" if self.images else f"decoder {kept}; it reads no images"


PEERS: Final[Mapping[PeerName, PeerEngine]] = {
    "hf": PeerEngine("hf", "engine_hf", "transformers bf16", "bf16", False),
    "vllm": PeerEngine("vllm", "engine_vllm", "vLLM bf16", "bf16", True),
    "vllm-eager": PeerEngine("vllm", "engine_vllm", "vLLM bf16 eager", "bf16", True, eager=True),
    "openvino-genai": PeerEngine(
        "openvino-genai", "engine_genai", "OpenVINO GenAI bf16", "bf16", False, converted=True
    ),
    "openvino-genai-int8": PeerEngine(
        "openvino-genai", "engine_genai", "OpenVINO GenAI int8", "int8", False, converted=True
    ),
}


def python_of(folder: Path, environment: str) -> Path:
    """The interpreter of an environment."""
    return folder / environment / "bin" / "python"


def check_installed(names: Sequence[PeerName], folder: Path) -> None:
    """Look whether the environments are there and whole.

    Raises:
        UserError: one is not; with the command that makes it.
    """
    for name in names:
        peer = PEERS[name]
        for environment in (peer.environment, *([CONVERTER] if peer.converted else [])):
            if not (folder / environment / INSTALLED).is_file() or not python_of(folder, environment).exists():
                raise UserError(
                    f"the peer {name} is not installed",
                    seen=folder / environment,
                    fix=f"scripts/peers.sh --dir {folder.absolute()} {environment}",
                )


def packages(folder: Path, environment: str) -> dict[str, str]:
    """Version of every package of an environment, by name."""
    places = [str(place) for place in (folder / environment).glob("lib/python3*/site-packages")]
    found = importlib.metadata.distributions(path=places)
    return dict(sorted((each.metadata["Name"], each.version) for each in found))


def converted_model(name: PeerName, folder: Path, checkpoint: Path) -> Path:
    """Where the converted decoder of a checkpoint lies for a peer, or will.

    The name of the folder is a digest of the checkpoint's names, sizes and times: reading its weights would take as
    long as converting them.
    """
    digest = hashlib.sha256((checkpoint / "config.json").read_bytes())
    for file in sorted(checkpoint.glob("*.safetensors")):
        status = file.stat()
        digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return folder / "models" / digest.hexdigest()[:16] / f"{PEERS[name].environment}-{PEERS[name].precision}"

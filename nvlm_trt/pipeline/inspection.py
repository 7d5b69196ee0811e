"""What a checkpoint consists of, as figures."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.tensors import DECODER_PREFIX, PROJECTOR_PREFIX, VISION_PREFIX

PARTS = {"vision": VISION_PREFIX, "projector": PROJECTOR_PREFIX, "decoder": DECODER_PREFIX}


@dataclass(slots=True)
class Part:
    """Figures of one part of the model.

    Attributes:
        tensors: Number of tensors.
        parameters: Values in them, dummy heads included.
        bytes: Bytes on the disk.
        dtypes: Parameters by dtype of safetensors.
    """

    tensors: int = 0
    parameters: int = 0
    bytes: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)


def parts_of(checkpoint: Checkpoint) -> dict[str, Part]:
    """Figures of the vision encoder, the projector and the decoder, and of the whole under "total"."""
    parts = {name: Part() for name in (*PARTS, "total")}
    for info in checkpoint.tensors.values():
        name = next(name for name, prefix in PARTS.items() if info.name.startswith(prefix))
        for part in (parts[name], parts["total"]):
            count = math.prod(info.shape)
            part.tensors += 1
            part.parameters += count
            part.bytes += info.nbytes
            part.dtypes[info.dtype] = part.dtypes.get(info.dtype, 0) + count
    return parts


def describe(checkpoint: Checkpoint) -> dict[str, object]:
    """All facts about a checkpoint as a JSON object: parts, configuration, dummy heads, shards.

    A `Checkpoint` only exists once its names, shapes and dtypes were found right, so `missing` and `extra` are empty.
    """
    config = checkpoint.config
    return {
        "path": str(checkpoint.path),
        "parts": {name: asdict(part) for name, part in parts_of(checkpoint).items()},
        "config": asdict(config),
        "tile_size": config.tile_size,
        "tokens_per_tile": config.tokens_per_tile,
        "dummy_heads": checkpoint.dummy_heads,
        "shards": sorted({info.file.name for info in checkpoint.tensors.values()}),
        "missing": [],
        "extra": [],
    }

"""InternViT and projector over many tiles with the memory of one ViT block, layer by layer.

The blocks are those of `VisionReference`, so the rows are bit for bit what it gives for one tile at a time.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.config import NvlmConfig
from nvlm_trt.model.reference.layer_stream import (
    HiddenStates,
    checkpoint_key,
    read_weights,
    stream_layers,
    weight_bytes,
)
from nvlm_trt.model.reference.vision import Observe, VisionReference, normalise, pixel_shuffle
from nvlm_trt.model.tensors import PROJECTOR_PREFIX, VISION_PREFIX, projector_tensors, vision_layer, vision_tensors
from nvlm_trt.progress import Progress

Finished = Callable[[int], None]
"""Told the index of a ViT block, or the number of blocks for the projector, when every tile has passed it."""


class Tiles(Protocol):
    """Tiles, uint8 [s, s, 3], one by one and as often as asked for; they need not all be in memory, as an array is."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]: ...


ROWS_FILE = "rows.bin"

EMBEDDINGS_PREFIX = f"{VISION_PREFIX}embeddings."


def stream_vision(
    checkpoint: Checkpoint,
    tiles: Tiles,
    *,
    work_dir: Path,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    observe: Observe | None = None,
    finished: Finished | None = None,
    progress: Progress | None = None,
) -> torch.Tensor:
    """Encode tiles; a run that was killed goes on after the last finished block.

    An observer sees only the blocks that this process runs. To resume with what it has gathered, it must have saved
    that by the time `finished` returns: the block counts as done right after. A kill in between runs the block once
    more, from its first tile on. The projector is run again by every call.

    Args:
        checkpoint: An opened checkpoint.
        tiles: n tiles, uint8 [s, s, 3] each.
        work_dir: A folder that only this run uses, for hidden states and rows (see `work_bytes`: 17 MB a tile of
            NVLM-D). They stay there when it is done: remove the folder then.
        dtype: As for `VisionReference`.
        device: Where the blocks are run.
        observe: Shown the input [1, tokens, in] of every linear layer, one tile at a time, in the order of the tiles.
            Names are those of the ONNX graph: `vision/layer_00/attention/qkv`, `vision/layer_00/attention/proj`,
            `vision/layer_00/mlp/fc1`, `vision/layer_00/mlp/fc2`, ..., `projector/fc1`, `projector/fc2`.
        finished: Called after each block, in order, and after the projector.
        progress: Told bytes of weights that all tiles have passed, and `streamed_bytes`.

    Returns:
        [n, tokens_per_tile, decoder hidden size] in `dtype`, mapped from a file in `work_dir` (which may be removed).
    """
    place, vision = torch.device(device), checkpoint.config.vision
    weights: dict[str, torch.Tensor] = {}
    reference = VisionReference(checkpoint, dtype, weights=weights, observe=observe)

    def load(prefix: str) -> None:
        weights.clear()
        weights.update(read_weights(checkpoint, prefix, dtype, place))

    def embedded() -> Iterator[torch.Tensor]:
        load(EMBEDDINGS_PREFIX)
        for tile in tiles:
            yield reference.embed(normalise(tile[np.newaxis]).to(place, dtype)).cpu()

    def block(index: int) -> _Block:
        load(vision_layer(index))
        return _Block(reference, index, place, finished)

    key = f"vision {digest_of(tiles)} {place} {checkpoint_key(checkpoint)}"
    states = HiddenStates(work_dir, key, [(1, vision.patches_per_side**2 + 1, vision.hidden_size)] * len(tiles), dtype)
    sizes = [weight_bytes(checkpoint, vision_layer(index)) for index in range(vision.num_layers)]
    total = streamed_bytes(checkpoint)
    with torch.inference_mode():
        states.begin(embedded())
        stream_layers(states, sizes, block, lambda done, _: progress(done, total) if progress else None)
        load(PROJECTOR_PREFIX)
        shape = (len(tiles), checkpoint.config.tokens_per_tile, checkpoint.config.decoder.hidden_size)
        rows = torch.from_file(str(work_dir / ROWS_FILE), shared=True, size=math.prod(shape), dtype=dtype).view(shape)
        for number, hidden in enumerate(states):
            rows[number] = reference.project(pixel_shuffle(hidden[:, 1:].to(place), checkpoint.config.shuffle))[0]
    if finished is not None:
        finished(vision.num_layers)
    if progress is not None:
        progress(total, total)
    return rows


def digest_of(tiles: Tiles) -> str:
    """SHA-256 of all tiles in order, one in memory at a time."""
    digest = hashlib.sha256()
    for tile in tiles:
        digest.update(tile.tobytes())
    return digest.hexdigest()


def streamed_bytes(checkpoint: Checkpoint) -> int:
    """What the progress of `stream_vision` counts: bytes of all blocks and of the projector."""
    layers = range(checkpoint.config.vision.num_layers)
    blocks = sum(weight_bytes(checkpoint, vision_layer(index)) for index in layers)
    return blocks + weight_bytes(checkpoint, PROJECTOR_PREFIX)


def work_bytes(config: NvlmConfig, tiles: int) -> int:
    """Bytes on disk of `stream_vision` at most, in bfloat16: hidden states before and after a block, and the rows."""
    vision = config.vision
    states = 2 * (vision.patches_per_side**2 + 1) * vision.hidden_size
    return 2 * tiles * (states + config.tokens_per_tile * config.decoder.hidden_size)


def peak_bytes(config: NvlmConfig) -> int:
    """Bytes of memory of `stream_vision` at most, in bfloat16 and beside the process: 1.4 GB of NVLM-D-72B.

    The weights of a block or of the projector, and the attention's scores of one tile before and after the softmax.
    """
    prefix = vision_layer(0)
    block = sum(math.prod(shape) for name, shape in vision_tensors(config, 0).items() if name.startswith(prefix))
    projector = sum(math.prod(shape) for shape in projector_tensors(config).values())
    scores = 2 * config.vision.num_heads * (config.vision.patches_per_side**2 + 1) ** 2
    return 2 * (max(block, projector) + scores)


@dataclass(frozen=True, slots=True)
class _Block:
    """One ViT block, its weights loaded."""

    reference: VisionReference
    index: int
    device: torch.device
    finished: Finished | None

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.reference.block(self.index, hidden.to(self.device)).cpu()

    def finish(self) -> None:
        if self.finished is not None:
            self.finished(self.index)

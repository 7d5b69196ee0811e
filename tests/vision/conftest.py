"""Checkpoints of several shapes, the tiles of real photographs, and exports made once a session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.release import ReleaseSpec
from nvlm_trt.model.synthetic import tiny_spec, write_synthetic
from nvlm_trt.model.tiling import TileGrid, cut_tiles
from nvlm_trt.vision.build_cpu import build_vision_cpu
from nvlm_trt.vision.export import export_vision


def unusual_spec() -> ReleaseSpec:
    """Heads of 24 values (whose scale is no power of two), patches of 7 pixels, odd widths."""
    spec = tiny_spec(tile_size=56, dummy_heads=2, hidden_size=48, intermediate_size=88, decoder_layers=1)
    vision = replace(spec.config.vision, hidden_size=72, num_heads=3, intermediate_size=100, patch_size=7)
    return replace(spec, config=replace(spec.config, vision=vision))


SPECS: dict[str, ReleaseSpec] = {
    "five heads and three dummies": tiny_spec(tile_size=112, decoder_layers=1),
    "seven heads and no dummy": tiny_spec(
        tile_size=56, vision_heads=7, dummy_heads=0, vision_layers=1, decoder_layers=1, max_shard_bytes=None
    ),
    "one head and seven dummies, three blocks": tiny_spec(
        tile_size=84, vision_heads=1, dummy_heads=7, vision_layers=3, decoder_layers=1
    ),
    "unusual widths": unusual_spec(),
    "release tile": tiny_spec(decoder_layers=1),
}

MakeCheckpoint = Callable[[str], Checkpoint]
MakeExport = Callable[[str, str], Path]
MakeTiles = Callable[[int, int], npt.NDArray[np.uint8]]


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """The checkpoint of one of `SPECS`, made once."""
    root = tmp_path_factory.mktemp("checkpoints")
    made: dict[str, Checkpoint] = {}

    def make(shape: str) -> Checkpoint:
        if shape not in made:
            out = root / shape.replace(" ", "-")
            write_synthetic(out, SPECS[shape])
            made[shape] = Checkpoint.open(out)
        return made[shape]

    return make


@pytest.fixture(scope="session")
def export_of(checkpoint_of: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> MakeExport:
    """The export of one of `SPECS` in a precision, with an FP32 table, and its CPU engine in `cpu/`. Read only."""
    root = tmp_path_factory.mktemp("exports")

    def make(shape: str, precision: str) -> Path:
        out = root / f"{shape}-{precision}".replace(" ", "-")
        if not out.exists():
            (out / "cpu").mkdir(parents=True)
            export_vision(checkpoint_of(shape), out, precision=precision, output_dtype="fp32")
            build_vision_cpu(out / "vision.onnx", out / "cpu", precision=precision)
        return out

    return make


@pytest.fixture(scope="session")
def tiles_of(photographs: dict[str, Image.Image]) -> MakeTiles:
    """The first tiles of photographs, 3 x 2 and a thumbnail each, in a side length."""

    def make(count: int, side: int) -> npt.NDArray[np.uint8]:
        grid = TileGrid(3, 2, thumbnail=True)
        tiles = np.concatenate([cut_tiles(image, grid, side) for image in photographs.values()])
        assert len(tiles) >= count
        return tiles[:: len(tiles) // count][:count]

    return make

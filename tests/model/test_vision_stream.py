"""InternViT streamed block by block gives the reference's rows, shows every linear's input, and resumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.vision import VisionReference
from nvlm_trt.model.reference.vision_stream import stream_vision
from nvlm_trt.vision.dtypes import FP32
from nvlm_trt.vision.graph import build_vision_graph


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(tiny_checkpoint)


@pytest.fixture(scope="module")
def tiles(checkpoint: Checkpoint) -> np.ndarray:
    size = checkpoint.config.tile_size
    return np.random.default_rng(5).integers(0, 256, (3, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_those_of_the_reference(
    checkpoint: Checkpoint, tiles: np.ndarray, tmp_path: Path, dtype: torch.dtype
) -> None:
    reference = VisionReference(checkpoint, dtype)
    expected = torch.cat([reference(tile[None]) for tile in tiles])
    seen = stream_vision(checkpoint, tiles, work_dir=tmp_path, dtype=dtype)
    assert torch.equal(seen, expected)


def test_every_linear_of_the_graph_is_shown_with_its_width(
    checkpoint: Checkpoint, tiles: np.ndarray, tmp_path: Path
) -> None:
    graph = build_vision_graph(
        checkpoint.config, dummy_heads=checkpoint.dummy_heads, precision=FP32, output=FP32
    ).model.graph
    weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    expected = {
        node.output[0].removesuffix("/matmul"): weights[node.input[1]][1]
        for node in graph.node
        if node.op_type == "Gemm" and "embeddings" not in node.name
    }
    seen: dict[str, list[int]] = {}

    def observe(name: str, x: torch.Tensor) -> None:
        seen.setdefault(name, []).append(x.shape[-1])

    stream_vision(checkpoint, tiles, work_dir=tmp_path, observe=observe)
    assert seen == {name: [width] * len(tiles) for name, width in expected.items()}
    assert checkpoint.dummy_heads, "the widths above prove that dummy heads are left out"


def test_a_killed_run_goes_on_after_the_last_finished_block(
    checkpoint: Checkpoint, tiles: np.ndarray, tmp_path: Path
) -> None:
    expected = stream_vision(checkpoint, tiles, work_dir=tmp_path / "undisturbed")
    finished: list[int] = []

    def kill(index: int) -> None:
        if index == 1:
            raise KilledError
        finished.append(index)

    with pytest.raises(KilledError):
        stream_vision(checkpoint, tiles, work_dir=tmp_path / "work", finished=kill)
    seen = stream_vision(checkpoint, tiles, work_dir=tmp_path / "work", finished=finished.append)
    assert torch.equal(seen, expected)
    assert finished == list(range(checkpoint.config.vision.num_layers + 1))


def test_other_tiles_do_not_take_up_the_work_of_earlier_ones(
    checkpoint: Checkpoint, tiles: np.ndarray, tmp_path: Path
) -> None:
    stream_vision(checkpoint, tiles, work_dir=tmp_path)
    others = tiles[::-1]
    assert torch.equal(
        stream_vision(checkpoint, others, work_dir=tmp_path),
        stream_vision(checkpoint, others, work_dir=tmp_path / "fresh"),
    )


def test_progress_reaches_the_bytes_of_blocks_and_projector(
    checkpoint: Checkpoint, tiles: np.ndarray, tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    stream_vision(checkpoint, tiles, work_dir=tmp_path, progress=lambda done, total: told.append((done, total)))
    parts = ("vision_model.encoder.", "mlp1.")
    total = sum(info.nbytes for name, info in checkpoint.tensors.items() if name.startswith(parts))
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert len(told) == len(tiles) * checkpoint.config.vision.num_layers + 1

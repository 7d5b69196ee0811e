"""The running engine: exact, independent of batch-mates and threads, and plain about what is wrong."""

from __future__ import annotations

import hashlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from nvlm_trt.errors import EngineError, RequestError
from nvlm_trt.model.reference.vision import VisionReference
from nvlm_trt.vision.runner import VisionRunner

SHAPES = (
    "five heads and three dummies",
    "seven heads and no dummy",
    "one head and seven dummies, three blocks",
    "unusual widths",
    "release tile",
)
SHAPE = SHAPES[0]


@pytest.fixture(scope="module")
def runner(export_of):
    return VisionRunner(export_of(SHAPE, "fp32") / "cpu", threads=1)


@pytest.fixture
def engine_copy(export_of, tmp_path):
    """A CPU engine that a test may damage."""
    return shutil.copytree(export_of(SHAPE, "fp32") / "cpu", tmp_path / "engine")


def cosines(table, expected):
    """Cosine of every row with the reference's."""
    product = (table * expected).sum(-1)
    return product / np.linalg.norm(table, axis=-1) / np.linalg.norm(expected, axis=-1)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_fp32_engine_computes_what_the_reference_computes(export_of, checkpoint_of, tiles_of, shape):
    checkpoint = checkpoint_of(shape)
    tiles = tiles_of(3, checkpoint.config.tile_size)
    expected = VisionReference(checkpoint)(tiles).numpy()
    table = VisionRunner(export_of(shape, "fp32") / "cpu", threads=1).encode(tiles)
    assert table.shape == expected.shape
    assert table.dtype == np.float32
    assert np.abs(table - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_bf16_engine_is_as_close_as_the_released_arithmetic(export_of, checkpoint_of, tiles_of, shape):
    checkpoint = checkpoint_of(shape)
    tiles = tiles_of(3, checkpoint.config.tile_size)
    expected = VisionReference(checkpoint)(tiles).numpy()
    released = VisionReference(checkpoint, torch.bfloat16)(tiles).float().numpy()
    table = VisionRunner(export_of(shape, "bf16") / "cpu", threads=1).encode(tiles)
    assert cosines(table, expected).min() > 0.999
    assert 1 - cosines(table, expected).mean() < 3 * (1 - cosines(released, expected).mean())


def test_different_photographs_give_different_rows(runner, tiles_of):
    table = runner.encode(tiles_of(3, runner.tile_size))
    assert np.abs(table[0] - table[1]).max() > 0.1


def test_no_tile_gives_no_rows(runner):
    assert runner.encode(np.zeros((0, 112, 112, 3), np.uint8)).shape == (0, 16, 128)


def test_the_engine_tells_its_sizes(runner):
    assert (runner.tile_size, runner.tokens_per_tile, runner.hidden_size) == (112, 16, 128)


def test_a_tile_does_not_depend_on_its_batch_mates(runner, tiles_of):
    tiles = tiles_of(5, runner.tile_size)
    together = runner.encode(tiles)
    alone = np.concatenate([runner.encode(tiles[index : index + 1]) for index in range(5)])
    assert np.array_equal(together, alone)


def test_tiles_may_be_a_view(runner, tiles_of):
    tiles = tiles_of(4, runner.tile_size)
    assert np.array_equal(runner.encode(tiles[::-2]), runner.encode(tiles[::-2].copy()))


def test_threads_may_call_at_once(runner, tiles_of):
    tiles = tiles_of(8, runner.tile_size)
    expected = runner.encode(tiles)
    with ThreadPoolExecutor(8) as pool:
        tables = list(pool.map(lambda index: runner.encode(tiles[index : index + 1]), list(range(8)) * 4))
    assert np.array_equal(np.concatenate(tables[:8]), expected)
    assert np.array_equal(np.concatenate(tables[24:]), expected)


def test_an_earlier_result_is_not_overwritten(runner, tiles_of):
    tiles = tiles_of(2, runner.tile_size)
    first = runner.encode(tiles[:1])
    kept = first.copy()
    runner.encode(tiles[1:])
    assert np.array_equal(first, kept)


@pytest.mark.parametrize(
    ("tiles", "sentence"),
    [
        (np.zeros((1, 112, 112, 3), np.float32), "seen: float32; expected: uint8"),
        (np.zeros((1, 112, 112, 4), np.uint8), r"seen: \[1, 112, 112, 4\]"),
        (np.zeros((1, 3, 112, 112), np.uint8), r"expected: \[n, 112, 112, 3\]"),
        (np.zeros((112, 112, 3), np.uint8), "wrong shape"),
    ],
)
def test_arrays_that_are_no_tiles_are_refused(runner, tiles, sentence):
    with pytest.raises(RequestError, match=sentence):
        runner.encode(tiles)


@pytest.mark.parametrize("name", ["config.json", "model.xml", "model.bin"])
def test_a_missing_file_is_an_engine_error(engine_copy, name):
    (engine_copy / name).unlink()
    with pytest.raises(EngineError, match=name.replace(".", r"\.")):
        VisionRunner(engine_copy)


def test_a_directory_that_is_not_there_is_an_engine_error(tmp_path):
    with pytest.raises(EngineError, match="build it again"):
        VisionRunner(tmp_path / "nowhere")


def test_a_graph_that_was_changed_is_an_engine_error(engine_copy):
    xml = engine_copy / "model.xml"
    xml.write_text(xml.read_text().replace("112", "113", 1))
    with pytest.raises(EngineError, match="not the one that was built"):
        VisionRunner(engine_copy)


def test_weights_that_are_cut_short_are_an_engine_error(engine_copy):
    weights = engine_copy / "model.bin"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(EngineError, match="wrong length"):
        VisionRunner(engine_copy)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 2}', "\x00\x01"])
def test_a_damaged_description_is_an_engine_error(engine_copy, text):
    (engine_copy / "config.json").write_text(text)
    with pytest.raises(EngineError, match="damaged or of another version"):
        VisionRunner(engine_copy)


def test_a_graph_that_openvino_cannot_read_is_an_engine_error(engine_copy):
    (engine_copy / "model.xml").write_text("<net/>")
    config = json.loads((engine_copy / "config.json").read_text())
    config["xml_sha256"] = hashlib.sha256(b"<net/>").hexdigest()
    (engine_copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(EngineError, match="OpenVINO cannot load"):
        VisionRunner(engine_copy)

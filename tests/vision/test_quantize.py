"""Calibration on images: the largest magnitudes of every linear layer's input, resumable, refused where meaningless."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nvlm_trt.errors import CheckpointError, EngineError, RecipeError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.vision import VisionReference
from nvlm_trt.model.reference.vision_stream import work_bytes
from nvlm_trt.model.synthetic import tiny_spec, write_synthetic
from nvlm_trt.vision import quantize
from nvlm_trt.vision.dtypes import BF16, FP32, QUANTIZATIONS
from nvlm_trt.vision.quantize import calibrate_vision
from nvlm_trt.vision.scales import VisionScales, encode, linear_names, scale_of

SHAPE = "one head and seven dummies, three blocks"


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def checkpoint(checkpoint_of) -> Checkpoint:
    return checkpoint_of(SHAPE)


@pytest.fixture(scope="module")
def tiles(checkpoint, tiles_of) -> np.ndarray:
    return tiles_of(4, checkpoint.config.tile_size)


class Counted:
    """Tiles that know how many of them are in memory at a time."""

    def __init__(self, tiles: np.ndarray) -> None:
        self._tiles = tiles
        self._alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
        self.most = 0

    def __len__(self) -> int:
        return len(self._tiles)

    def __iter__(self) -> Iterator[np.ndarray]:
        for tile in self._tiles:
            copy = torch.from_numpy(tile.copy())
            self._alive.add(copy)
            self.most = max(self.most, len(self._alive))
            yield copy.numpy()


@pytest.fixture(scope="module")
def calibration(checkpoint, tiles, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("calibration") / "scales.safetensors"
    calibrate_vision(checkpoint, tiles, out, work_dir=out.parent / "work")
    return out


def test_the_largest_magnitude_over_all_tiles_is_kept(checkpoint, tiles, calibration):
    largest: dict[str, float] = {}

    def observe(name: str, x: torch.Tensor) -> None:
        largest[name] = max(largest.get(name, 0.0), *(float(value) for value in (x.max(), -x.min())))

    reference = VisionReference(checkpoint, torch.bfloat16, observe=observe)
    for tile in tiles:
        reference(tile[None])
    measured = load_file(calibration)
    assert {name: value.dtype for name, value in measured.items()} == dict.fromkeys(largest, torch.float32)
    assert {name: value.item() for name, value in measured.items()} == largest
    assert set(largest) == set(linear_names(checkpoint.config))


def test_a_json_file_beside_it_tells_what_was_measured_on(calibration):
    description = json.loads(calibration.with_suffix(".json").read_text())
    assert description["tiles"] == 4
    assert description["tile_size"] == 84
    assert len(description["tiles_sha256"]) == 64


def test_a_killed_calibration_goes_on_after_the_last_block_and_ends_with_the_same_bytes(
    checkpoint, tiles, calibration, tmp_path, monkeypatch
):
    blocks: list[str] = []
    observe = quantize._Gathered.observe

    def count(self, linear: str, x: torch.Tensor, die_at: str = "vision/layer_01/mlp/fc2") -> None:
        if linear == die_at:
            raise KilledError
        observe(self, linear, x)

    monkeypatch.setattr(quantize._Gathered, "observe", count)
    with pytest.raises(KilledError):
        calibrate_vision(checkpoint, tiles, tmp_path / "s.safetensors", work_dir=tmp_path / "work")
    assert not (tmp_path / "s.safetensors").exists()

    def watch(self, linear: str, x: torch.Tensor) -> None:
        blocks.append(linear.split("/")[1])
        observe(self, linear, x)

    monkeypatch.setattr(quantize._Gathered, "observe", watch)
    calibrate_vision(checkpoint, tiles, tmp_path / "s.safetensors", work_dir=tmp_path / "work")
    assert set(blocks) == {"layer_01", "layer_02", "fc1", "fc2"}, "block 0 had been finished"
    assert (tmp_path / "s.safetensors").read_bytes() == calibration.read_bytes()


@pytest.mark.parametrize("lost", [True, False])
def test_what_other_tiles_or_a_lost_note_left_behind_is_not_used(
    checkpoint, tiles, calibration, tmp_path, monkeypatch, lost
):
    work = tmp_path / "work"
    bright = np.full_like(tiles, 255)
    calibrate_vision(checkpoint, tiles if lost else bright, tmp_path / "first.safetensors", work_dir=work)
    if lost:
        (work / "amax.safetensors").unlink()
    calibrate_vision(checkpoint, tiles, tmp_path / "second.safetensors", work_dir=work)
    assert (tmp_path / "second.safetensors").read_bytes() == calibration.read_bytes()


@pytest.mark.parametrize("content", ["damaged", "of block 0 alone"])
def test_a_note_that_is_damaged_or_lacks_a_finished_block_begins_the_calibration_again(
    checkpoint, tiles, calibration, tmp_path, monkeypatch, content
):
    work, note = tmp_path / "work", tmp_path / "work" / "amax.safetensors"
    finish, kept = quantize._Gathered.save, []

    def save(self) -> None:
        finish(self)
        kept.append(note.read_bytes())
        if len(kept) == 3:
            raise KilledError  # before the third block counts as finished

    monkeypatch.setattr(quantize._Gathered, "save", save)
    with pytest.raises(KilledError):
        calibrate_vision(checkpoint, tiles, tmp_path / "s.safetensors", work_dir=work)
    note.write_bytes(bytes(100) if content == "damaged" else kept[0])
    monkeypatch.undo()
    calibrate_vision(checkpoint, tiles, tmp_path / "s.safetensors", work_dir=work)
    assert (tmp_path / "s.safetensors").read_bytes() == calibration.read_bytes()


def test_tiles_are_read_one_by_one_and_hidden_states_stay_within_the_estimate(checkpoint, tiles, calibration, tmp_path):
    sizes, counted = [], Counted(tiles)

    def weigh(*_: int) -> None:
        sizes.append(sum(path.stat().st_size for path in (tmp_path / "work" / "states").iterdir()))

    calibrate_vision(checkpoint, counted, tmp_path / "s.safetensors", work_dir=tmp_path / "work", progress=weigh)
    assert (tmp_path / "s.safetensors").read_bytes() == calibration.read_bytes()
    assert counted.most <= 2
    estimate = work_bytes(checkpoint.config, len(tiles))
    assert estimate / 2 < max(sizes) <= estimate + 2000, "beside headers"


def test_without_tiles_there_is_no_calibration(checkpoint, tiles, tmp_path):
    with pytest.raises(RecipeError, match="no tiles"):
        calibrate_vision(checkpoint, tiles[:0], tmp_path / "s.safetensors", work_dir=tmp_path / "work")


def test_an_input_that_is_not_finite_is_refused_by_its_name(tmp_path, tiles_of):
    source = tmp_path / "checkpoint"
    write_synthetic(source, tiny_spec(tile_size=56, decoder_layers=1, max_shard_bytes=None))
    tensors = load_file(source / "model.safetensors")
    tensors["vision_model.encoder.layers.1.norm1.weight"][3] = math.nan
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(CheckpointError, match="layer_01/attention/qkv: nan"):
        calibrate_vision(
            Checkpoint.open(source), tiles_of(1, 56), tmp_path / "s.safetensors", work_dir=tmp_path / "work"
        )


def test_a_gpus_memory_is_given_back_at_the_end(checkpoint, tiles, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(quantize, "give_back_memory", given.append)
    calibrate_vision(checkpoint, tiles, tmp_path / "s.safetensors", work_dir=tmp_path / "work")
    assert given == [torch.device("cpu")]


def test_progress_reaches_its_end(checkpoint, tiles, tmp_path):
    told = []
    calibrate_vision(
        checkpoint, tiles, tmp_path / "s.safetensors", work_dir=tmp_path, progress=lambda *step: told.append(step)
    )
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] > 0


def test_scales_are_read_for_either_kind(checkpoint, calibration):
    for kind, quantization in QUANTIZATIONS.items():
        scales = VisionScales.load(calibration, kind, checkpoint.config)
        assert scales.quantization is quantization
        name = "projector/fc1"
        assert scales.input_scale(name, FP32) == np.float32(scales.amax[name]) / np.float32(quantization.limit)


def test_scales_of_another_model_a_damaged_value_or_an_unknown_kind_are_refused(
    checkpoint, checkpoint_of, calibration, tmp_path
):
    with pytest.raises(EngineError, match="unexpected: vision/layer_01/attention/qkv"):
        VisionScales.load(calibration, "fp8", checkpoint_of("seven heads and no dummy").config)
    values = load_file(calibration)
    save_file({**values, "projector/fc2": torch.tensor(math.inf)}, tmp_path / "s.safetensors")
    with pytest.raises(EngineError, match="projector/fc2 inf"):
        VisionScales.load(tmp_path / "s.safetensors", "fp8", checkpoint.config)
    with pytest.raises(RecipeError, match="int8 or fp8"):
        VisionScales.load(calibration, "int4", checkpoint.config)
    with pytest.raises(CheckpointError, match="calibration cannot be read"):
        VisionScales.load(tmp_path / "none.safetensors", "fp8", checkpoint.config)


def test_a_scale_is_a_value_of_the_graphs_type_and_never_zero():
    kind = QUANTIZATIONS["int8"]
    scale = scale_of(torch.tensor([1.0, 0.0, 1e-44]), kind, BF16)
    assert scale.tolist() == [0.007873535156250, 1.0, 1.0]
    assert scale_of(torch.tensor(3.5), QUANTIZATIONS["fp8"], FP32).item() == 0.0078125


def test_codes_round_half_to_even_and_stay_within_the_limit():
    values = torch.tensor([0.5, 1.5, -2.5, 126.6, 128.0, -500.0, 0.0])
    codes = encode(values, torch.tensor(1.0), QUANTIZATIONS["int8"])
    assert codes.tolist() == [0, 2, -2, 127, 127, -127, 0]
    values = torch.tensor([1.0625, 1.1875, -17.0, 460.0, -1e30, 2.0**-10, 3 * 2.0**-10])
    codes = encode(values, torch.tensor(1.0), QUANTIZATIONS["fp8"])
    assert codes.float().tolist() == [1.0, 1.25, -16.0, 448.0, -448.0, 0.0, 2.0**-8]

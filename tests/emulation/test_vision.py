"""The vision encoder in the arithmetic of fp8 and int8: what is rounded, how far, and what is left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nvlm_trt.emulation.vision import VisionArithmetic, weight_of
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.tokenizer import NvlmTokenizer
from nvlm_trt.verify.cases import Limits, make_case
from nvlm_trt.verify.golden import Floats, closeness
from nvlm_trt.vision.quantize import calibrate_vision
from nvlm_trt.vision.scales import linear_names, read_amax


@pytest.fixture(scope="module")
def tiles(opened: Checkpoint, tokenizer: NvlmTokenizer) -> np.ndarray:
    return make_case(opened.config, tokenizer, Limits(512, 2, 6), 2, 2).tiles


@pytest.fixture(scope="module")
def calibration(opened: Checkpoint, tiles: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    calibrate_vision(opened, tiles, folder / "vision.safetensors", work_dir=folder / "work")
    return folder / "vision.safetensors"


def rows(arithmetic: VisionArithmetic, tiles: np.ndarray) -> Floats:
    (table,) = arithmetic.tables([tiles])
    assert table is not None
    return table


def test_every_linear_layer_of_the_graph_has_a_weight_in_the_checkpoint(opened: Checkpoint) -> None:
    names = [weight_of(linear) for linear in linear_names(opened.config)]
    assert set(names) <= set(opened.tensors)
    assert len(names) == len(set(names))


def test_weights_keep_within_another_limit_where_one_is_given(
    opened: Checkpoint, tiles: np.ndarray, calibration: Path
) -> None:
    narrow, whole = (VisionArithmetic(opened, "int8", calibration, weight_limit=limit) for limit in (7, None))
    weight = opened.read(weight_of("projector/fc1"), torch.float32)
    step = (weight.abs().amax(dim=1, keepdim=True) / 7).to(torch.bfloat16).float()
    codes = narrow._checkpoint.read(weight_of("projector/fc1"), torch.float32) / step
    assert sorted(set(codes.round().flatten().tolist())) == list(range(-7, 8))
    exact = rows(VisionArithmetic(opened, "fp32"), tiles)
    distances = [closeness(rows(each, tiles), exact)["mean_cosine_distance"] for each in (narrow, whole)]
    assert distances[0] > 5 * distances[1]


@pytest.mark.parametrize(("kind", "least", "most"), [("int8", 1e-4, 2e-3), ("fp8", 1e-3, 1e-2)])
def test_rounding_costs_what_its_bits_let_expect(
    opened: Checkpoint, tiles: np.ndarray, calibration: Path, kind: str, least: float, most: float
) -> None:
    exact = rows(VisionArithmetic(opened, "fp32"), tiles)
    figures = closeness(rows(VisionArithmetic(opened, kind, calibration), tiles), exact)
    assert least < figures["mean_cosine_distance"] < most
    assert closeness(rows(VisionArithmetic(opened, "bf16"), tiles), exact)["mean_cosine_distance"] < least


def test_weights_are_whole_steps_of_their_rows(opened: Checkpoint, calibration: Path) -> None:
    name = weight_of("projector/fc1")
    rounded = VisionArithmetic(opened, "int8", calibration)._checkpoint.read(name, torch.float32)
    weight = opened.read(name, torch.float32)
    step = (weight.abs().amax(dim=1, keepdim=True) / 127).to(torch.bfloat16).float()
    codes = rounded / step
    assert float((codes - codes.round()).abs().max()) < 1e-3
    assert float(codes.abs().max()) <= 127
    assert bool(((rounded - weight).abs() <= step * 1.01).all())
    other = "vision_model.embeddings.class_embedding"
    assert torch.equal(VisionArithmetic(opened, "int8", calibration)._checkpoint.read(other), opened.read(other))


def test_inputs_are_cut_at_their_calibrated_range(
    opened: Checkpoint, tiles: np.ndarray, calibration: Path, tmp_path: Path
) -> None:
    narrow = {name: torch.tensor(value / 8) for name, value in read_amax(calibration).items()}
    save_file(narrow, tmp_path / "narrow.safetensors")
    exact = rows(VisionArithmetic(opened, "fp32"), tiles)
    cut = closeness(rows(VisionArithmetic(opened, "int8", tmp_path / "narrow.safetensors"), tiles), exact)
    whole = closeness(rows(VisionArithmetic(opened, "int8", calibration), tiles), exact)
    assert cut["mean_cosine_distance"] > 20 * whole["mean_cosine_distance"]


def test_single_layers_can_be_quantised_alone(opened: Checkpoint, tiles: np.ndarray, calibration: Path) -> None:
    nothing = rows(VisionArithmetic(opened, "fp8", calibration, linears=()), tiles)
    np.testing.assert_array_equal(nothing, rows(VisionArithmetic(opened, "bf16"), tiles))
    one = rows(VisionArithmetic(opened, "fp8", calibration, linears=("projector/fc2",)), tiles)
    everything = rows(VisionArithmetic(opened, "fp8", calibration), tiles)
    distances = [closeness(each, nothing)["mean_cosine_distance"] for each in (one, everything)]
    assert 0 < distances[0] < distances[1]

"""Reading the results of a calibration: whole, checked, and no more than a precision needs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nvlm_trt.decoder.precision import decoder_precision
from nvlm_trt.decoder.quantize_scales import CalibrationResults, layer_file, needed_results
from nvlm_trt.errors import CheckpointError
from nvlm_trt.model.config import DecoderConfig

DECODER = DecoderConfig(
    hidden_size=32,
    intermediate_size=48,
    num_layers=3,
    num_heads=8,
    num_kv_heads=2,
    vocab_size=101,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    max_position_embeddings=1024,
)
FP8, SQ = decoder_precision("fp8"), decoder_precision("int8_sq")
LINEARS = ("qkv", "dense", "fc", "proj")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Complete results of three layers."""
    for index in range(3):
        tensors = {"kv.amax": torch.tensor([5.0 + index])}
        for key in LINEARS:
            tensors[f"{key}.input_amax"] = torch.tensor([1.0])
            tensors[f"{key}.weight_amax"] = torch.tensor([2.0])
            tensors[f"{key}.prequant"] = torch.full((48 if key == "proj" else 32,), 0.5)
        save_file(tensors, tmp_path / f"layer_00{index}.safetensors")
    return tmp_path


def refusal(folder: Path, name: str, kv_cache: str = "auto") -> str:
    with pytest.raises(CheckpointError) as refused:
        CalibrationResults.open(folder, DECODER, decoder_precision(name, kv_cache=kv_cache))
    return str(refused.value)


def test_each_precision_asks_for_what_it_uses() -> None:
    scalars, factors = {"input_amax": (1,)}, {"qkv": (32,), "dense": (32,), "fc": (32,), "proj": (48,)}
    assert needed_results(DECODER, FP8) == {
        **{f"{key}.{name}": (1,) for key in LINEARS for name in ("input_amax", "weight_amax")},
        "kv.amax": (1,),
    }
    assert needed_results(DECODER, SQ) == {
        **{f"{key}.{name}": shape for key in LINEARS for name, shape in scalars.items()},
        **{f"{key}.prequant": shape for key, shape in factors.items()},
    }
    assert needed_results(DECODER, decoder_precision("int4_awq")) == {
        f"{key}.prequant": shape for key, shape in factors.items()
    }
    assert needed_results(DECODER, decoder_precision("bf16", kv_cache="fp8")) == {"kv.amax": (1,)}
    assert needed_results(DECODER, decoder_precision("int8_wo")) == {}


def test_layers_are_found_by_their_place_in_the_whole_model(folder: Path) -> None:
    assert [layer_file(index) for index in (0, 79, 100)] == [
        "layer_000.safetensors",
        "layer_079.safetensors",
        "layer_100.safetensors",
    ]
    results = CalibrationResults.open(folder, DECODER, FP8)
    assert [results.layer(index).kv_amax.item() for index in range(3)] == [5.0, 6.0, 7.0]
    assert results.layer(2).linear("fc").weight_amax.item() == 2.0


def test_results_that_other_precisions_use_may_be_there_or_not(folder: Path) -> None:
    tensors = load_file(folder / "layer_001.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "amax" in name} | {"note": torch.zeros(3)}
    save_file(kept, folder / "layer_001.safetensors")
    CalibrationResults.open(folder, DECODER, FP8)
    assert "layer_001.safetensors: missing proj.prequant [48]" in refusal(folder, "int8_sq")


def test_every_fault_of_every_file_is_listed_at_once(folder: Path) -> None:
    tensors = load_file(folder / "layer_000.safetensors")
    del tensors["qkv.prequant"]
    tensors["dense.input_amax"] = torch.tensor(1.0)
    tensors["proj.prequant"] = torch.ones(48, dtype=torch.bfloat16)
    save_file(tensors, folder / "layer_000.safetensors")
    (folder / "layer_001.safetensors").unlink()
    (folder / "layer_002.safetensors").write_bytes(b"\x08")
    shutil.copy(folder / "layer_000.safetensors", folder / "layer_003.safetensors")
    text = refusal(folder, "int8_sq")
    assert "6 faults in the calibration results" in text
    assert "layer_000.safetensors: missing qkv.prequant [32]" in text
    assert "layer_000.safetensors: dense.input_amax is F32 [], expected F32 [1]" in text
    assert "layer_000.safetensors: proj.prequant is BF16 [48], expected F32 [48]" in text
    assert "layer_001.safetensors: missing" in text
    assert "layer_002.safetensors: a file of calibration results cannot be read" in text
    assert "layer_003.safetensors: there are only 3 layers" in text


@pytest.mark.parametrize(
    ("name", "key", "value", "says"),
    [
        ("fp8", "fc.input_amax", float("nan"), "fc.input_amax holds nan, expected a finite number from 0 up"),
        ("fp8", "proj.weight_amax", float("inf"), "proj.weight_amax holds inf"),
        ("fp8", "kv.amax", -1.0, "kv.amax holds -1"),
        ("int8_sq", "qkv.prequant", 0.0, "qkv.prequant holds 0, expected factors above 0 that fit bfloat16"),
        ("int4_awq", "dense.prequant", -2.0, "dense.prequant holds -2"),
        ("int4_awq", "proj.prequant", 3.4e38, "proj.prequant holds 3.4e+38, expected factors"),
        ("int4_awq", "proj.prequant", 1e-42, "proj.prequant holds 1.00053e-42, expected factors"),
    ],
)
def test_values_that_give_no_scale_are_faults(folder: Path, name: str, key: str, value: float, says: str) -> None:
    tensors = load_file(folder / "layer_001.safetensors")
    tensors[key][-1] = value
    save_file(tensors, folder / "layer_001.safetensors")
    assert f"layer_001.safetensors: {says}" in refusal(folder, name)


def test_an_activation_that_was_always_zero_is_no_fault(folder: Path) -> None:
    tensors = load_file(folder / "layer_001.safetensors")
    tensors["proj.input_amax"][0] = 0.0
    save_file(tensors, folder / "layer_001.safetensors")
    assert CalibrationResults.open(folder, DECODER, FP8).layer(1).linear("proj").input_amax.item() == 0.0


def test_a_folder_that_is_not_there_lacks_every_layer(tmp_path: Path) -> None:
    text = refusal(tmp_path / "nowhere", "fp8")
    assert "nowhere: 3 faults" in text
    assert "layer_002.safetensors: missing" in text

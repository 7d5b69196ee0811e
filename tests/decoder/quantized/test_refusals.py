"""What a quantised conversion refuses, and what of its result is refused later."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nvlm_trt.decoder.convert import convert_decoder
from nvlm_trt.decoder.precision import PRECISIONS, decoder_precision
from nvlm_trt.decoder.trtllm_checkpoint import TrtllmCheckpoint
from nvlm_trt.errors import CheckpointError, RecipeError
from nvlm_trt.model.checkpoint import Checkpoint

from .sources import FORMATS, MLP


def test_every_fault_of_a_quantised_checkpoint_is_listed(converted: Callable[..., Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(converted("int4_awq-g64", 2), tmp_path / "copy"))
    tensors = load_file(copy / "rank1.safetensors")
    layer = "transformer.layers.1."
    tensors[f"{layer}mlp.fc.weight"] = tensors[f"{layer}mlp.fc.weight"].view(torch.uint8)
    tensors[f"{layer}mlp.fc.prequant_scaling_factor"] = tensors[f"{layer}mlp.fc.prequant_scaling_factor"].float()
    del tensors[f"{layer}attention.dense.weights_scaling_factor"]
    scales = tensors[f"{layer}mlp.proj.weights_scaling_factor"]
    tensors[f"{layer}mlp.proj.weights_scaling_factor"] = scales[:, :8].contiguous()
    tensors[f"{layer}mlp.fc.activation_scaling_factor"] = torch.ones(1)
    save_file(tensors, copy / "rank1.safetensors")
    with pytest.raises(CheckpointError) as refusal:
        TrtllmCheckpoint.open(copy)
    for fault in (
        "5 faults",
        f"dtype of {layer}mlp.fc.weight is U8, expected I8",
        f"dtype of {layer}mlp.fc.prequant_scaling_factor is F32, expected BF16",
        f"missing {layer}attention.dense.weights_scaling_factor [512, 4]",
        f"shape of {layer}mlp.proj.weights_scaling_factor is [512, 8], expected [512, 9]",
        f"unexpected {layer}mlp.fc.activation_scaling_factor [1]",
    ):
        assert fault in str(refusal.value)


def test_a_config_of_another_precision_does_not_pass(converted: Callable[..., Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(converted("fp8", 2), tmp_path / "copy"))
    raw = json.loads((copy / "config.json").read_text())
    for quantization, says in (
        ({"quant_algo": "FP8"}, "unexpected transformer.layers.0.attention.kv_cache_scaling_factor"),
        ({"quant_algo": None}, "is F8_E4M3, expected BF16"),
        ({"quant_algo": "W8A8_SQ_PER_CHANNEL", "kv_cache_quant_algo": "FP8"}, "is F8_E4M3, expected I8"),
    ):
        (copy / "config.json").write_text(json.dumps(raw | {"quantization": quantization}))
        with pytest.raises(CheckpointError, match=says):
            TrtllmCheckpoint.open(copy)


@pytest.mark.parametrize(("form", "algo"), [("fp8", "FP8"), ("int8_sq", "W8A8_SQ"), ("int4_awq-g64", "W4A16_AWQ")])
def test_quantised_weights_are_not_joined_and_all_others_are(
    source: Checkpoint, converted: Callable[..., Path], form: str, algo: str
) -> None:
    checkpoint = TrtllmCheckpoint.open(converted(form, 2))
    for join in (
        lambda: checkpoint.layer(0),
        lambda: checkpoint.joined("language_model.model.layers.1.self_attn.o_proj.weight"),
    ):
        with pytest.raises(CheckpointError, match=f"quantised weights cannot be joined; seen: .* in {algo}"):
            join()
    assert checkpoint.embedding().equal(source.read("language_model.model.embed_tokens.weight", torch.bfloat16))
    bias = "language_model.model.layers.1.self_attn.k_proj.bias"
    assert checkpoint.joined(bias).equal(source.read(bias, torch.bfloat16))


def test_a_precision_that_needs_calibration_is_refused_without_one(source: Checkpoint, tmp_path: Path) -> None:
    for precision in (PRECISIONS["int4_awq"], decoder_precision("bf16", kv_cache="int8")):
        with pytest.raises(RecipeError, match="needs the results of a calibration"):
            convert_decoder(source, tmp_path / "out", tp=1, pp=1, precision=precision)
    assert not (tmp_path / "out").exists()


def test_faulty_results_leave_an_earlier_conversion_alone(source: Checkpoint, results: Path, tmp_path: Path) -> None:
    folder, out = Path(shutil.copytree(results, tmp_path / "results")), tmp_path / "out"
    convert_decoder(source, out, tp=1, pp=1, precision=PRECISIONS["fp8"], calibration=folder)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    tensors = load_file(folder / "layer_001.safetensors")
    save_file(tensors | {"proj.prequant": torch.ones(MLP + 1)}, folder / "layer_001.safetensors")
    with pytest.raises(CheckpointError, match=r"layer_001\.safetensors: proj\.prequant is F32 \[1089\], expected F32"):
        convert_decoder(source, out, tp=1, pp=1, precision=PRECISIONS["int8_sq"], calibration=folder)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def changed_copy(checkpoint: Checkpoint, directory: Path, factor: float) -> Checkpoint:
    """The checkpoint as a single file, with one weight of layer 1's up_proj multiplied."""
    directory.mkdir()
    shutil.copy(checkpoint.path / "config.json", directory)
    tensors = {name: checkpoint.read(name).contiguous() for name in checkpoint.tensors}
    weight = tensors["language_model.model.layers.1.mlp.up_proj.weight"]
    weight[700, 3] = weight.abs().max() * factor
    save_file(tensors, directory / "model.safetensors")
    return Checkpoint.open(directory)


@pytest.mark.parametrize("factor", [4.0, float("nan")])
def test_weights_that_the_calibration_did_not_see_are_refused(
    source: Checkpoint, results: Path, tmp_path: Path, factor: float
) -> None:
    checkpoint, out = changed_copy(source, tmp_path / "source", factor), tmp_path / "out"
    with pytest.raises(CheckpointError, match=r"larger than the calibration says; seen: \S+ in fc of layer 1"):
        convert_decoder(checkpoint, out, tp=2, pp=1, precision=PRECISIONS["fp8"], calibration=results)
    assert not (out / "config.json").exists()


@pytest.mark.parametrize("form", ["int8_sq", "int4_awq-g64"])
def test_a_weight_that_is_no_number_is_refused(source: Checkpoint, results: Path, tmp_path: Path, form: str) -> None:
    checkpoint, out = changed_copy(source, tmp_path / "source", float("nan")), tmp_path / "out"
    with pytest.raises(CheckpointError, match="not finite, or too large for a scale; seen: fc of layer 1"):
        convert_decoder(checkpoint, out, tp=2, pp=1, precision=FORMATS[form], calibration=results)
    assert not (out / "config.json").exists()

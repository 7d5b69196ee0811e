"""Converting to a quantised TensorRT-LLM checkpoint: every bit, against whole matrices quantised by numpy alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file

from nvlm_trt.decoder import encode
from nvlm_trt.decoder.convert import convert_decoder, converted_bytes
from nvlm_trt.decoder.precision import PRECISIONS, Precision
from nvlm_trt.decoder.trtllm_checkpoint import TrtllmCheckpoint
from nvlm_trt.model.checkpoint import Checkpoint

from .sources import FORMATS, LINEARS, MLP, SOURCES, Array, Codes, make_source, rounded, unpacked, write_results

WIDE = {64: {1: 1088, 2: 1152, 4: 1280, 8: 1536}, 128: {1: 1152, 2: 1280, 4: 1536}}
"""What an MLP of 1088 is padded to, by the multiple that a rank's share has to be, and tp."""

CASES = [(form, tp, 1) for form in FORMATS for tp in (1, 2, 4, 8) if (form, tp) != ("int4_awq-g128", 8)]
CASES += [("fp8", 2, 2), ("int8_sq-kv8", 2, 2), ("int4_awq-g64", 2, 2)]


def bfloat16(values: Array) -> Array:
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


def nonzero(scale: Array) -> Array:
    return np.where(scale == 0, np.float32(1), scale)


def whole_codes(weight: Array, found: dict[str, Array], key: str, precision: Precision) -> tuple[Codes, Array]:
    """Codes [out, in] (FP8's by their bytes) and scales of a padded matrix."""
    if precision.quantization.quant_algo == "FP8":
        scale = found[f"{key}.weight_amax"] / np.float32(448)
        codes = np.clip(weight / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn)
        return codes.view(np.int8), scale
    prequant = bfloat16(found[f"{key}.prequant"])
    weight = weight / np.pad(prequant, (0, weight.shape[1] - len(prequant)), constant_values=1)
    if precision.quantization.quant_algo == "W8A8_SQ_PER_CHANNEL":
        scale = nonzero(np.abs(weight).max(axis=1) / np.float32(127))
        return np.clip(np.rint(weight / scale[:, None]), -128, 127).astype(np.int8), scale
    size = precision.group_size
    scale = nonzero(bfloat16(np.abs(weight.reshape(len(weight), -1, size)).max(axis=2) / np.float32(7)))
    return np.clip(np.rint(weight / scale.repeat(size, axis=1)), -8, 7).astype(np.int8), scale


def share(array: npt.NDArray[np.generic], axis: int, tp: int, rank: int) -> npt.NDArray[np.generic]:
    return np.split(array, tp, axis=axis)[rank]


def expected_rank(
    checkpoint: Checkpoint, results: Path, precision: Precision, wide: int, tp: int, pp: int, index: int
) -> dict[str, npt.NDArray[np.generic]]:
    """The quantised layers of a rank, cut from whole matrices that were quantised before."""
    decoder = checkpoint.config.decoder
    rank, stage = index % tp, index // tp
    algo = precision.quantization.quant_algo
    expected: dict[str, npt.NDArray[np.generic]] = {}
    for local, layer in enumerate(np.array_split(np.arange(decoder.num_layers), pp)[stage].tolist()):
        found = {name: each.numpy() for name, each in load_file(results / f"layer_{layer:03d}.safetensors").items()}
        prefix = f"transformer.layers.{local}."
        kv_algo = precision.quantization.kv_cache_quant_algo
        if kv_algo is not None:
            scale = np.maximum(found["kv.amax"] / np.float32(448), np.float32(1))
            scale = found["kv.amax"] / np.float32(127) if kv_algo == "INT8" else scale
            expected[f"{prefix}attention.kv_cache_scaling_factor"] = scale
        for name, key in LINEARS.items():
            axis = 1 if name in ("attention.dense", "mlp.proj") else 0
            pieces = []
            for part in SOURCES[name]:
                weight = rounded(checkpoint, layer, part)
                if name.startswith("mlp"):
                    padding = ((0, 0), (0, wide - MLP)) if axis else ((0, wide - MLP), (0, 0))
                    weight = np.pad(weight, padding)
                codes, scale = whole_codes(weight, found, key, precision)
                if part in SOURCES["attention.qkv"][1:]:  # a kv head for every rank that shares it
                    repeats = max(1, tp // decoder.num_kv_heads)
                    codes, scale = (
                        each.reshape(decoder.num_kv_heads, -1, *each.shape[1:]).repeat(repeats, axis=0)
                        if len(each) > 1
                        else each
                        for each in (codes, scale)
                    )
                    codes = codes.reshape(-1, codes.shape[-1])
                    scale = scale if len(scale) == 1 else scale.reshape(len(codes), *scale.shape[2:])
                cut_scale = scale
                if len(scale) > 1 and (axis == 0 or scale.ndim == 2):
                    cut_scale = share(scale, axis, tp, rank)
                pieces.append((share(codes, axis, tp, rank), cut_scale))
            expected[f"{prefix}{name}.weight"] = np.concatenate([codes for codes, _ in pieces])
            scales = [scale for _, scale in pieces]
            expected[f"{prefix}{name}.weights_scaling_factor"] = scales[0] if algo == "FP8" else np.concatenate(scales)
            if algo in ("FP8", "W8A8_SQ_PER_CHANNEL"):
                largest = np.float32(448 if algo == "FP8" else 127)
                expected[f"{prefix}{name}.activation_scaling_factor"] = found[f"{key}.input_amax"] / largest
            if algo != "FP8":
                prequant = bfloat16(found[f"{key}.prequant"])
                prequant = np.pad(prequant, (0, (wide if key == "proj" else 512) - len(prequant)), constant_values=1)
                expected[f"{prefix}{name}.prequant_scaling_factor"] = share(prequant, 0, tp, rank) if axis else prequant
    return expected


def as_numbers(name: str, stored: torch.Tensor, precision: Precision) -> npt.NDArray[np.generic]:
    if stored.dtype == torch.float8_e4m3fn:
        return stored.view(torch.int8).numpy()
    if stored.dtype == torch.int8:
        return unpacked(stored) if precision.quantization.quant_algo == "W4A16_AWQ" else stored.numpy()
    return stored.float().numpy()


@pytest.mark.parametrize(("form", "tp", "pp"), [case for case in CASES if "_wo" not in case[0]])
def test_every_rank_is_a_cut_of_the_whole_quantised_matrices(
    source: Checkpoint, results: Path, converted: Callable[..., Path], form: str, tp: int, pp: int
) -> None:
    precision = FORMATS[form]
    wide = WIDE[precision.group_size][tp] if "awq" in form else MLP
    assert TrtllmCheckpoint.open(converted(form, tp, pp)).config.decoder.intermediate_size == wide
    for index in range(tp * pp):
        seen = load_file(converted(form, tp, pp) / f"rank{index}.safetensors")
        expected = expected_rank(source, results, precision, wide, tp, pp, index)
        assert {name for name in seen if "scaling_factor" in name} == {n for n in expected if "scaling_factor" in n}
        for name, values in expected.items():
            assert np.array_equal(as_numbers(name, seen[name], precision), values), name


@pytest.mark.parametrize(("form", "tp", "pp"), [case for case in CASES if "_wo" in case[0]])
def test_weight_only_checkpoints_join_to_the_source_without_their_padding(
    source: Checkpoint, converted: Callable[..., Path], form: str, tp: int, pp: int
) -> None:
    checkpoint = TrtllmCheckpoint.open(converted(form, tp, pp))
    assert checkpoint.config.decoder.intermediate_size == WIDE[64][tp]
    assert checkpoint.decoder == source.config.decoder
    for name in source.tensors:
        if name.startswith("language_model."):
            assert checkpoint.joined(name).equal(source.read(name, torch.bfloat16)), name
    assert checkpoint.layer(1).down_weight.shape == (512, MLP)


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_padding_is_zeros_at_the_end(converted: Callable[..., Path], tp: int) -> None:
    wide = WIDE[64][tp]
    for form in ("int8_wo", "int4_awq-g64"):
        ranks = [load_file(converted(form, tp) / f"rank{index}.safetensors") for index in range(tp)]
        name = "transformer.layers.1.mlp."
        as_codes = unpacked if "awq" in form else torch.Tensor.float
        for part, axis in (("fc", 0), ("gate", 0), ("proj", 1)):
            whole = np.concatenate([np.asarray(as_codes(rank[f"{name}{part}.weight"])) for rank in ranks], axis=axis)
            assert whole.shape[axis] == wide
            assert not np.take(whole, range(MLP, wide), axis).any()
            assert np.take(whole, range(MLP), axis).any(axis=1 - axis).all()
    prequant = torch.cat([rank[f"{name}proj.prequant_scaling_factor"] for rank in ranks])
    scales = torch.cat([rank[f"{name}proj.weights_scaling_factor"] for rank in ranks], dim=1)
    assert (prequant[MLP:] == 1).all()
    assert (scales[:, MLP // 64 :] == 1).all()
    assert (torch.cat([rank[f"{name}fc.weights_scaling_factor"] for rank in ranks])[MLP:] == 1).all()


@pytest.mark.parametrize("form", ["fp8", "int8_sq", "int4_awq-g64", "int4_awq-g128"])
def test_dequantised_weights_are_the_source_up_to_half_a_step(
    source: Checkpoint, converted: Callable[..., Path], form: str
) -> None:
    precision = FORMATS[form]
    rank = load_file(converted(form, 1) / "rank0.safetensors")
    for layer in range(2):
        for name in LINEARS:
            prefix = f"transformer.layers.{layer}.{name}."
            weight = np.concatenate([rounded(source, layer, part) for part in SOURCES[name]])
            scale = rank[f"{prefix}weights_scaling_factor"].float().numpy()
            if form == "fp8":
                seen = rank[f"{prefix}weight"].float().numpy() * scale
                assert (np.abs(seen - weight) <= np.abs(weight) * 2**-4 + scale * 2**-10).all()
                continue
            codes = as_numbers(name, rank[f"{prefix}weight"], precision).astype(np.float32)
            step = scale[:, None] if scale.ndim == 1 else scale.repeat(precision.group_size, axis=1)
            prequant = rank[f"{prefix}prequant_scaling_factor"].float().numpy()
            rows, columns = weight.shape
            error = np.abs(codes * step * prequant)[:rows, :columns] - np.abs(weight)
            bound = (step * prequant)[:rows, :columns] * (0.5 + 7 * 2**-8)
            assert (np.abs(error) <= bound).all()
            assert np.abs(error).max() > bound.max() / 10, "a bound that is near what it bounds"


def test_fc_and_gate_share_their_scales_and_so_do_all_ranks(converted: Callable[..., Path]) -> None:
    ranks = [load_file(converted("fp8", 4) / f"rank{index}.safetensors") for index in range(4)]
    for suffix in ("weights_scaling_factor", "activation_scaling_factor"):
        found = {rank[f"transformer.layers.0.mlp.{part}.{suffix}"].item() for rank in ranks for part in ("fc", "gate")}
        assert len(found) == 1
    sq = [load_file(converted("int8_sq", 4) / f"rank{index}.safetensors") for index in range(4)]
    name = "transformer.layers.0.mlp.proj.weights_scaling_factor"
    assert all(rank[name].equal(sq[0][name]) for rank in sq)


def test_what_is_not_quantised_is_that_of_a_bf16_checkpoint(source: Checkpoint, results: Path, tmp_path: Path) -> None:
    convert_decoder(source, tmp_path / "bf16", tp=2, pp=1, precision=PRECISIONS["bf16"])
    convert_decoder(source, tmp_path / "fp8", tp=2, pp=1, precision=PRECISIONS["fp8"], calibration=results)
    for index in range(2):
        plain = tmp_path / "bf16" / f"rank{index}.safetensors"
        quantised = load_file(tmp_path / "fp8" / plain.name)
        for name, tensor in load_file(plain).items():
            if name.endswith(("norm.weight", "ln_f.weight", "bias", "embedding.weight", "head.weight")):
                assert quantised[name].equal(tensor), name
            else:
                assert quantised[name].dtype == torch.float8_e4m3fn


@pytest.mark.parametrize("form", ["fp8", "int8_sq", "int4_awq-g64"])
def test_float32_sources_give_what_their_rounded_values_give(
    source: Checkpoint, results: Path, converted: Callable[..., Path], tmp_path: Path, form: str
) -> None:
    assert source.tensors["language_model.model.layers.0.self_attn.q_proj.weight"].dtype == "F32"
    (tmp_path / "source").mkdir()
    shutil.copy(source.path / "config.json", tmp_path / "source")
    tensors = {name: source.read(name, torch.bfloat16).contiguous() for name in source.tensors}
    save_file(tensors, tmp_path / "source" / "model.safetensors")
    rounded_source = Checkpoint.open(tmp_path / "source")
    convert_decoder(rounded_source, tmp_path / "out", tp=2, pp=1, precision=FORMATS[form], calibration=results)
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (converted(form, 2) / path.name).read_bytes()


@pytest.mark.parametrize(
    ("form", "tp"), [("fp8", 1), ("int8_sq", 1), ("int4_awq-g64", 1), ("int4_awq-g64", 2), ("int8_wo", 2)]
)
def test_odd_widths_and_odd_blocks_change_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, tp: int
) -> None:
    """97 rows of fc: an odd number on the rank where the padding begins, and in AWQ two outputs share a byte."""
    checkpoint = make_source(
        tmp_path / "source", hidden_size=128, intermediate_size=97, heads=2, kv_heads=2, decoder_layers=1
    )
    folder = write_results(tmp_path / "results", checkpoint)
    for elements in (8 << 20, 3 * 128):
        monkeypatch.setattr(encode, "BLOCK_ELEMENTS", elements)
        out = tmp_path / str(elements)
        convert_decoder(checkpoint, out, tp=tp, pp=1, precision=FORMATS[form], calibration=folder)
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / str(8 << 20) / path.name).read_bytes()
    if (form, tp) == ("int4_awq-g64", 2):
        codes = unpacked(load_file(out / "rank1.safetensors")["transformer.layers.0.mlp.fc.weight"])
        assert codes[:33].any(axis=1).all()
        assert not codes[33:].any()


@pytest.mark.parametrize("form", FORMATS)
def test_planned_bytes_and_progress_are_those_of_the_files(
    source: Checkpoint, results: Path, form: str, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    convert_decoder(
        source,
        tmp_path,
        tp=2,
        pp=2,
        precision=FORMATS[form],
        calibration=results,
        progress=lambda done, total: seen.append((done, total)),
    )
    stored = sum(each.nbytes for path in tmp_path.glob("rank*") for each in load_file(path).values())
    assert {total for _, total in seen} == {stored}
    assert seen[-1] == (stored, stored)
    assert converted_bytes(source.config, 2, 2, precision=FORMATS[form]) == stored

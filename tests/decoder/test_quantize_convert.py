"""Converting to a quantised TensorRT-LLM checkpoint: every bit, against whole matrices quantised by numpy alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
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
from nvlm_trt.decoder.precision import PRECISIONS, Precision, decoder_precision
from nvlm_trt.decoder.trtllm_checkpoint import TrtllmCheckpoint
from nvlm_trt.errors import CheckpointError, RecipeError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.synthetic import tiny_spec, write_synthetic

Array = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int8]

FORMATS = {
    "fp8": decoder_precision("fp8"),
    "fp8-kv16": decoder_precision("fp8", kv_cache="model"),
    "int8_sq": decoder_precision("int8_sq"),
    "int8_sq-kv8": decoder_precision("int8_sq", kv_cache="int8"),
    "int4_awq-g64": decoder_precision("int4_awq", group_size=64),
    "int4_awq-g128": decoder_precision("int4_awq", group_size=128),
    "int8_wo": decoder_precision("int8_wo"),
    "int4_wo-kv8": decoder_precision("int4_wo", kv_cache="fp8"),
}
MLP = 1088
WIDE = {64: {1: 1088, 2: 1152, 4: 1280, 8: 1536}, 128: {1: 1152, 2: 1280, 4: 1536}}
"""What an MLP of 1088 is padded to, by the multiple that a rank's share has to be, and tp."""

CASES = [(form, tp, 1) for form in FORMATS for tp in (1, 2, 4, 8) if (form, tp) != ("int4_awq-g128", 8)]
CASES += [("fp8", 2, 2), ("int8_sq-kv8", 2, 2), ("int4_awq-g64", 2, 2)]

LINEARS = {"attention.qkv": "qkv", "attention.dense": "dense", "mlp.fc": "fc", "mlp.proj": "proj", "mlp.gate": "fc"}
"""Key in the calibration results by the layer's name."""

SOURCES = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.dense": ("self_attn.o_proj",),
    "mlp.fc": ("mlp.gate_proj",),
    "mlp.proj": ("mlp.down_proj",),
    "mlp.gate": ("mlp.up_proj",),
}


def make_source(directory: Path, **widths: int) -> Checkpoint:
    chosen = {"hidden_size": 512, "intermediate_size": MLP, "decoder_layers": 2, "heads": 8, "kv_heads": 4} | widths
    vision = {"tile_size": 28, "vision_heads": 1, "vision_layers": 1, "dummy_heads": 0}
    write_synthetic(directory, tiny_spec(vocab_size=101, **vision, **chosen))
    return Checkpoint.open(directory)


def rounded(checkpoint: Checkpoint, layer: int, part: str) -> Array:
    """A source matrix as float32 numbers that bfloat16 holds."""
    name = f"language_model.model.layers.{layer}.{part}.weight"
    return checkpoint.read(name, torch.bfloat16).float().numpy()


def write_results(folder: Path, checkpoint: Checkpoint) -> Path:
    """Results of a calibration: true maxima of the weights, all else random."""
    folder.mkdir()
    random = torch.Generator().manual_seed(7)
    groups = {"qkv": SOURCES["attention.qkv"], "dense": SOURCES["attention.dense"], "proj": SOURCES["mlp.proj"]}
    groups["fc"] = SOURCES["mlp.fc"] + SOURCES["mlp.gate"]
    for layer in range(checkpoint.config.decoder.num_layers):
        tensors = {"kv.amax": torch.rand(1, generator=random) * 900}
        for key, parts in groups.items():
            weights = [rounded(checkpoint, layer, part) for part in parts]
            tensors[f"{key}.input_amax"] = torch.rand(1, generator=random) * 20
            tensors[f"{key}.weight_amax"] = torch.tensor([max(np.abs(weight).max() for weight in weights)])
            tensors[f"{key}.prequant"] = torch.exp(torch.randn(weights[0].shape[1], generator=random) / 2)
        save_file(tensors, folder / f"layer_{layer:03d}.safetensors")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Two layers, 8 heads of 64, 4 kv heads; q, k and v are float32."""
    return make_source(tmp_path_factory.mktemp("quantize") / "source")


@pytest.fixture(scope="module")
def results(source: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("quantize") / "calibration", source)


@pytest.fixture(scope="module")
def converted(
    source: Checkpoint, results: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int, int], Path]:
    root = tmp_path_factory.mktemp("converted")

    def convert(form: str, tp: int, pp: int = 1) -> Path:
        path = root / f"{form}-tp{tp}pp{pp}"
        if not path.exists():
            convert_decoder(source, path, tp=tp, pp=pp, precision=FORMATS[form], calibration=results)
        return path

    return convert


# --- whole matrices, quantised by numpy ---------------------------------------------------------------------------


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


def unpacked(stored: torch.Tensor) -> Codes:
    """AWQ's codes [out, in] of its bytes [out / 2, in]: the even output is in the low half."""
    numbers = stored.numpy().view(np.uint8)
    codes = np.empty((2 * numbers.shape[0], numbers.shape[1]), dtype=np.int8)
    codes[0::2], codes[1::2] = numbers % 16, numbers // 16
    return np.where(codes > 7, codes - 16, codes)


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


# ------------------------------------------------------------------------------------------------------------------


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
    convert_decoder(source, tmp_path / "named", tp=2, pp=1, dtype="bfloat16")
    convert_decoder(source, tmp_path / "fp8", tp=2, pp=1, precision=PRECISIONS["fp8"], calibration=results)
    for index in range(2):
        plain = tmp_path / "bf16" / f"rank{index}.safetensors"
        assert plain.read_bytes() == (tmp_path / "named" / plain.name).read_bytes()
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


def test_dtype_and_precision_do_not_both_speak(source: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one of them"):
        convert_decoder(source, tmp_path, tp=1, pp=1, dtype="bfloat16", precision=PRECISIONS["bf16"])


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


PEAK_MEMORY = """
import re, sys
from pathlib import Path
from nvlm_trt.decoder.convert import convert_decoder
from nvlm_trt.decoder.precision import decoder_precision
from nvlm_trt.model.checkpoint import Checkpoint

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

checkpoint = Checkpoint.open(Path(sys.argv[1]))
Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten: imports are not what is measured
before = peak()
convert_decoder(checkpoint, Path(sys.argv[3]), tp=2, pp=1, precision=decoder_precision("int4_awq"),
                calibration=Path(sys.argv[2]))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_layers(tmp_path: Path) -> None:
    peaks = {}
    for layers in (2, 6):
        checkpoint = make_source(tmp_path / f"source{layers}", decoder_layers=layers, intermediate_size=3072)
        results = write_results(tmp_path / f"results{layers}", checkpoint)
        arguments = [str(checkpoint.path), str(results), str(tmp_path / f"out{layers}")]
        command = [sys.executable, "-c", PEAK_MEMORY, *arguments]
        peaks[layers] = int(subprocess.run(command, capture_output=True, check=True, timeout=120).stdout)
    layer_bytes = 2 * 512 * (512 * 2 + 2 * 256 + 3 * 3072)
    assert layer_bytes > 10 << 20, "layers are large enough for growth to show"
    assert 0 < peaks[6] < peaks[2] + layer_bytes, json.dumps(peaks)

"""Every precision of the decoder, rank by rank from disk: tp changes nothing, and a damaged rank shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nvlm_trt.decoder.convert import convert_decoder
from nvlm_trt.decoder.precision import decoder_precision
from nvlm_trt.errors import CheckpointError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.decoder import DecoderReference
from nvlm_trt.verify.fake_quant import RoundedCheckpoint
from nvlm_trt.verify.sharded import Prompt, precision_distance
from nvlm_trt.verify.sharded_report import PromptAgreement

from .conftest import Narrow
from .thread_ranks import emulated
from .trtllm_writer import Observed

pytestmark = pytest.mark.usefixtures("one_thread_an_operation")

LAYERS = 2

CALIBRATED = {
    "fp8": decoder_precision("fp8"),
    "fp8-kv16": decoder_precision("fp8", kv_cache="model"),
    "int8_sq": decoder_precision("int8_sq"),
    "int8_sq-kv8": decoder_precision("int8_sq", kv_cache="int8"),
    "int4_awq-g64": decoder_precision("int4_awq", group_size=64),
}
QUANTISED_BY_THE_BUILD = {"int8_wo": decoder_precision("int8_wo"), "int4_wo": decoder_precision("int4_wo")}
FORMATS = CALIBRATED | QUANTISED_BY_THE_BUILD

PARTS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "dense": ("self_attn.o_proj",),
    "fc": ("mlp.gate_proj", "mlp.up_proj"),
    "proj": ("mlp.down_proj",),
}
"""Weights that share an input, by the key of calibration results."""


# --- sources, their calibration and their conversions -------------------------------------------------------------


def calibrate(checkpoint: Checkpoint, observed: Observed, folder: Path) -> Path:
    """Results of a calibration: true maxima, and factors that share outliers with the weights."""
    folder.mkdir()
    for layer in range(LAYERS):
        prefix = f"language_model.model.layers.{layer}."
        tensors = {"kv.amax": torch.tensor([observed.kv[layer]])}
        for key, parts in PARTS.items():
            weights = torch.cat([checkpoint.read(f"{prefix}{part}.weight", torch.float32) for part in parts])
            inputs = observed.inputs[f"{prefix}{parts[0]}.weight"]
            factors = (weights.abs().amax(dim=0) / inputs.clamp(min=1e-3)).sqrt().clamp(0.1, 10)
            tensors[f"{key}.prequant"] = factors
            tensors[f"{key}.weight_amax"] = weights.abs().amax()[None]
            tensors[f"{key}.input_amax"] = inputs.amax()[None]
            tensors[f"{key}.smoothed"] = (inputs * factors).amax()[None]
        save_file(tensors, folder / f"layer_{layer:03d}.safetensors")
    return folder


def smoothed(folder: Path, out: Path) -> Path:
    """The same results with maxima of the inputs after their factors, as SmoothQuant takes them."""
    out.mkdir()
    for file in folder.iterdir():
        tensors = load_file(file)
        tensors |= {f"{key}.input_amax": tensors.pop(f"{key}.smoothed") for key in PARTS}
        save_file(tensors, out / file.name)
    return out


@pytest.fixture(scope="module")
def sources(narrow: Narrow) -> dict[int, Checkpoint]:
    """Two layers with 8 heads of 64 and 4 kv heads, by the MLP's width: 1088 is padded at tp 2, 4 and 8."""
    return {width: narrow(LAYERS, 4, width) for width in (1024, 1088)}


def source_of(sources: dict[int, Checkpoint], form: str) -> Checkpoint:
    """The build's own scales are over blocks of columns: those of tp ranks and of tp blocks agree without padding."""
    return sources[1024 if form in QUANTISED_BY_THE_BUILD else 1088]


Converter = Callable[[str, int], Path]


@pytest.fixture(scope="module")
def converted(
    sources: dict[int, Checkpoint],
    observed: Callable[[Checkpoint], Observed],
    tmp_path_factory: pytest.TempPathFactory,
) -> Converter:
    """The TensorRT-LLM checkpoint of a format and a tp, made once."""
    root = tmp_path_factory.mktemp("converted")
    plain = calibrate(sources[1088], observed(sources[1088]), root / "calibration")
    after_factors = smoothed(plain, root / "smoothed")

    def convert(form: str, tp: int) -> Path:
        path, precision = root / f"{form}-tp{tp}", FORMATS[form]
        if not path.exists():
            results = after_factors if form.startswith("int8_sq") else plain
            convert_decoder(source_of(sources, form), path, tp=tp, pp=1, precision=precision, calibration=results)
        return path

    return convert


def largest_error(logits: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Over the largest magnitude of a logit."""
    pairs = list(zip(logits, expected, strict=True))
    return max(float((ours - theirs).abs().max() / theirs.abs().max()) for ours, theirs in pairs)


# --- what is shown ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tp", [2, 4, 8])
@pytest.mark.parametrize("form", CALIBRATED)
def test_calibrated_ranks_compute_what_one_rank_does(
    converted: Converter, prompts: list[Prompt], form: str, tp: int
) -> None:
    whole = emulated(converted(form, 1), prompts)
    assert largest_error(emulated(converted(form, tp), prompts), whole) < 1e-12


@pytest.mark.parametrize("tp", [2, 4, 8])
@pytest.mark.parametrize("form", QUANTISED_BY_THE_BUILD)
def test_ranks_that_the_build_quantises_compute_what_one_rank_does_with_their_scales(
    converted: Converter, prompts: list[Prompt], form: str, tp: int
) -> None:
    ranks = emulated(converted(form, tp), prompts)
    assert largest_error(ranks, emulated(converted(form, 1), prompts, column_blocks=tp)) < 1e-12
    with_scales_of_whole_rows = largest_error(ranks, emulated(converted(form, 1), prompts))
    assert 1e-4 < with_scales_of_whole_rows < 0.5  # measured: 0.02 with 8 bits, 0.2 to 0.3 with 4


@pytest.mark.parametrize("form", FORMATS)
def test_the_roundings_of_a_precision_are_really_there(
    sources: dict[int, Checkpoint], converted: Converter, prompts: list[Prompt], form: str
) -> None:
    """Far from the reference by what rounding explains: not exact, and still the same function."""
    source = source_of(sources, form)
    expected = [DecoderReference(source).logits(ids, table) for ids, table in prompts]
    logits = emulated(converted(form, 2), prompts)
    distances = [PromptAgreement.of(*pair).mean_cosine_distance for pair in zip(logits, expected, strict=True)]
    bounds = {"int8": (1e-4, 1e-2), "fp8": (1e-3, 5e-2), "int4": (1e-2, 2e-1)}
    least, most = bounds[form.partition("_")[0].partition("-")[0]]
    assert all(least < distance < most for distance in distances)


def test_processes_over_gloo_compute_what_threads_do(
    sources: dict[int, Checkpoint], converted: Converter, prompts: list[Prompt]
) -> None:
    directory = converted("fp8", 2)
    report = precision_distance(sources[1088], directory, prompts=prompts, timeout=120)
    reference = DecoderReference(RoundedCheckpoint(sources[1088], torch.bfloat16))
    threads = [
        PromptAgreement.of(logits, reference.logits(ids, table))
        for logits, (ids, table) in zip(emulated(directory, prompts), prompts, strict=True)
    ]
    for seen, expected in zip(report.prompts, threads, strict=True):
        assert seen.mean_cosine_distance == pytest.approx(expected.mean_cosine_distance, rel=1e-4)
        assert seen.mean_kl_divergence == pytest.approx(expected.mean_kl_divergence, rel=1e-4)
    assert 0.5 < report.figures()["excess"] < 2


Damage = Callable[[list[dict[str, torch.Tensor]]], None]
LAST = "transformer.layers.1."


def swap_nibbles(ranks: list[dict[str, torch.Tensor]]) -> None:
    name = f"{LAST}mlp.fc.weight"
    codes = ranks[1][name].view(torch.uint8)
    ranks[1][name] = ((codes << 4) | (codes >> 4)).view(torch.int8)


def double_a_scale(ranks: list[dict[str, torch.Tensor]]) -> None:
    ranks[1][f"{LAST}mlp.proj.weights_scaling_factor"] *= 2


def take_the_other_ranks_columns(ranks: list[dict[str, torch.Tensor]]) -> None:
    name = f"{LAST}attention.dense.weight"
    ranks[1][name] = ranks[0][name]


def forget_factors(ranks: list[dict[str, torch.Tensor]]) -> None:
    ranks[1][f"{LAST}mlp.proj.prequant_scaling_factor"].fill_(1)


def shrink_the_range_of_inputs(ranks: list[dict[str, torch.Tensor]]) -> None:
    for rank in ranks:
        rank[f"{LAST}attention.dense.activation_scaling_factor"] /= 4


def shrink_the_range_of_the_cache(ranks: list[dict[str, torch.Tensor]]) -> None:
    for rank in ranks:
        rank[f"{LAST}attention.kv_cache_scaling_factor"] /= 100


@pytest.mark.parametrize(
    ("form", "damage"),
    [
        ("fp8", double_a_scale),
        ("fp8", shrink_the_range_of_inputs),
        ("fp8", take_the_other_ranks_columns),
        ("int8_sq", double_a_scale),
        ("int8_sq", forget_factors),
        ("int8_sq", shrink_the_range_of_inputs),
        ("int8_sq-kv8", shrink_the_range_of_the_cache),
        ("int4_awq-g64", swap_nibbles),
        ("int4_awq-g64", double_a_scale),
        ("int4_awq-g64", forget_factors),
        ("int8_wo", take_the_other_ranks_columns),
        ("int4_wo", take_the_other_ranks_columns),
    ],
)
def test_a_damaged_rank_changes_the_logits_by_far_more_than_the_split(
    converted: Converter, prompts: list[Prompt], tmp_path: Path, form: str, damage: Damage
) -> None:
    directory = converted(form, 2)
    ranks = [load_file(directory / f"rank{index}.safetensors") for index in range(2)]
    damage(ranks)
    (tmp_path / "config.json").write_bytes((directory / "config.json").read_bytes())
    for index, rank in enumerate(ranks):
        save_file({name: tensor.clone() for name, tensor in rank.items()}, tmp_path / f"rank{index}.safetensors")
    assert largest_error(emulated(tmp_path, prompts), emulated(directory, prompts)) > 0.02


def test_a_rank_without_its_scales_says_so(converted: Converter, prompts: list[Prompt], tmp_path: Path) -> None:
    directory = converted("fp8", 1)
    tensors = load_file(directory / "rank0.safetensors")
    del tensors[f"{LAST}mlp.fc.activation_scaling_factor"]
    save_file(tensors, tmp_path / "rank0.safetensors")
    (tmp_path / "config.json").write_bytes((directory / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"lacks a tensor.*mlp\.fc\.activation_scaling_factor"):
        emulated(tmp_path, prompts)

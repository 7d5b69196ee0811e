"""Every precision of the decoder, rank by rank from disk: tp changes nothing, and a damaged rank shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own short name
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

from nvlm_trt.decoder.convert import convert_decoder
from nvlm_trt.decoder.precision import decoder_precision
from nvlm_trt.errors import CheckpointError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.decoder import DecoderReference
from nvlm_trt.model.synthetic import tiny_spec, write_synthetic
from nvlm_trt.verify.fake_quant import RoundedCheckpoint
from nvlm_trt.verify.sharded import Prompt, precision_distance
from nvlm_trt.verify.sharded_report import PromptAgreement

from .thread_ranks import emulated

VOCAB, HIDDEN, LAYERS = 203, 512, 2

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


class SeenInputs(TorchFunctionMode):
    """Keeps the largest magnitude of every input channel of every F.linear of the reference, and its outputs'."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self._names = names
        self.inputs: dict[str, torch.Tensor] = {}
        self.outputs: dict[str, torch.Tensor] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if func is F.linear and id(args[1]) in self._names:
            name = self._names[id(args[1])]
            for kept, values in ((self.inputs, args[0]), (self.outputs, result)):
                amax = values.abs().amax(dim=0)
                kept[name] = torch.maximum(kept.get(name, amax), amax)
        return result


def calibrate(checkpoint: Checkpoint, prompts: list[Prompt], folder: Path) -> Path:
    """Results of a calibration on these prompts: true maxima, and factors that share outliers with the weights."""
    folder.mkdir()
    reference = DecoderReference(checkpoint)
    with SeenInputs({id(weight): name for name, weight in reference._weights.items()}) as seen:
        for ids, table in prompts:
            reference.logits(ids, table)
    for layer in range(LAYERS):
        prefix = f"language_model.model.layers.{layer}."
        keys_and_values = [seen.outputs[f"{prefix}self_attn.{part}_proj.weight"] for part in "kv"]
        tensors = {"kv.amax": 2**0.5 * torch.cat(keys_and_values).amax()[None]}  # as RoPE may enlarge a key
        for key, parts in PARTS.items():
            weights = torch.cat([reference._weights[f"{prefix}{part}.weight"] for part in parts])
            inputs = seen.inputs[f"{prefix}{parts[0]}.weight"]
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


@pytest.fixture(autouse=True, scope="module")
def one_thread_an_operation() -> Iterator[None]:
    """Ranks that are threads already would only get into each other's way with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    """A text, and a text around nine rows of a prompt table."""
    generator = np.random.default_rng(7)
    before, after = generator.integers(0, VOCAB, 4), generator.integers(0, VOCAB, 5)
    table = generator.standard_normal((9, HIDDEN), dtype=np.float32)
    mixed = np.concatenate([before, VOCAB + np.arange(9), after]).astype(np.int32)
    return [(list(generator.integers(0, VOCAB, 13)), None), (mixed, table)]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Checkpoint]:
    """Two layers with 8 heads of 64 and 4 kv heads, by the MLP's width: 1088 is padded at tp 2, 4 and 8."""
    root, made = tmp_path_factory.mktemp("sources"), {}
    for width in (1024, 1088):
        spec = tiny_spec(
            tile_size=28,
            vision_heads=1,
            vision_layers=1,
            dummy_heads=0,
            hidden_size=HIDDEN,
            intermediate_size=width,
            decoder_layers=LAYERS,
            heads=8,
            kv_heads=4,
            vocab_size=VOCAB,
        )
        write_synthetic(root / str(width), spec)
        made[width] = Checkpoint.open(root / str(width))
    return made


def source_of(sources: dict[int, Checkpoint], form: str) -> Checkpoint:
    """The build's own scales are over blocks of columns: those of tp ranks and of tp blocks agree without padding."""
    return sources[1024 if form in QUANTISED_BY_THE_BUILD else 1088]


Converter = Callable[[str, int], Path]


@pytest.fixture(scope="module")
def converted(
    sources: dict[int, Checkpoint], prompts: list[Prompt], tmp_path_factory: pytest.TempPathFactory
) -> Converter:
    """The TensorRT-LLM checkpoint of a format and a tp, made once."""
    root = tmp_path_factory.mktemp("converted")
    plain = calibrate(sources[1088], prompts, root / "calibration")
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

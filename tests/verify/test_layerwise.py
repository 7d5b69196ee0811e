"""Every tensor of a converted decoder against the source, on checkpoints that the tests' own writer made."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nvlm_trt.decoder.precision import QuantAlgo
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.verify.gates import CACHE_GATES, COPY_GATES, LINEAR_GATES, judge
from nvlm_trt.verify.layer_deviation import Deviation
from nvlm_trt.verify.layerwise import LayerwiseReport, compare_layers, worst
from nvlm_trt.verify.sharded import Prompt

from .conftest import Narrow
from .thread_ranks import emulated
from .trtllm_writer import Format, Observed, Writer

pytestmark = pytest.mark.usefixtures("one_thread_an_operation")

LAYERS = 3

FORMATS = {
    "bf16": Format(None),
    "fp16-kv8": Format(None, "INT8", torch.float16),
    "fp8": Format("FP8", "FP8"),
    "sq": Format("W8A8_SQ_PER_CHANNEL", "INT8"),
    "awq": Format("W4A16_AWQ"),
    "w8": Format("W8A16"),
    "w4": Format("W4A16", "FP8"),
}
BUILD_QUANTISES = ("w8", "w4")

Written = Callable[[str, int, int], Path]


@pytest.fixture(scope="module")
def source(narrow: Narrow) -> Checkpoint:
    """Three layers, 8 heads, 2 kv heads (which 4 and 8 ranks repeat)."""
    return narrow(LAYERS, 2, 512)


@pytest.fixture(scope="module")
def written(
    source: Checkpoint, observed: Callable[[Checkpoint], Observed], tmp_path_factory: pytest.TempPathFactory
) -> Written:
    """Checkpoints by format, tp and pp, made once."""
    root, writers = tmp_path_factory.mktemp("written"), {}

    def write(name: str, tp: int, pp: int) -> Path:
        path = root / f"{name}-{tp}x{pp}"
        if not path.exists():
            if name not in writers:
                writers[name] = Writer(source, FORMATS[name], observed(source))
            writers[name].write(path, tp=tp, pp=pp)
        return path

    return write


def failed(report: LayerwiseReport, form: Format) -> set[str]:
    """Figures that their gates refuse."""
    algo = None if form.algo is None else QuantAlgo(form.algo)
    gates = COPY_GATES + LINEAR_GATES[algo] + (CACHE_GATES if form.kv else ())
    return {check.gate.figure for check in judge("layers", gates, report.figures()) if not check.ok}


@pytest.mark.parametrize(("tp", "pp"), [(2, 2), (8, 1)])
@pytest.mark.parametrize("name", FORMATS)
def test_ranks_of_another_writer_compute_what_one_rank_does(
    written: Written, prompts: list[Prompt], name: str, tp: int, pp: int
) -> None:
    blocks = tp if name in BUILD_QUANTISES else 1
    whole = emulated(written(name, 1, 1), prompts, column_blocks=blocks)
    ranks = emulated(written(name, tp, pp), prompts)
    for ours, expected in zip(ranks, whole, strict=True):
        assert float((ours - expected).abs().max() / expected.abs().max()) < 1e-12


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 2), (8, 1)])
@pytest.mark.parametrize("name", FORMATS)
def test_a_sound_checkpoint_passes_with_room_to_spare(
    written: Written, source: Checkpoint, prompts: list[Prompt], name: str, tp: int, pp: int
) -> None:
    told: list[tuple[int, int]] = []
    report = compare_layers(
        source, written(name, tp, pp), prompts, progress=lambda done, total: told.append((done, total))
    )
    assert failed(report, FORMATS[name]) == set()
    assert [(each.layer, each.name) for each in report.linears[:5]] == [
        (0, name) for name in ("attention.qkv", "attention.dense", "mlp.fc", "mlp.gate", "mlp.proj")
    ]
    assert len(report.linears) == 5 * LAYERS
    assert len(report.caches) == (LAYERS if FORMATS[name].kv else 0)
    assert report.quantises_linears is (FORMATS[name].algo is not None)
    if report.quantises_linears:
        assert all(0.4 < each.excess < 1.2 for each in report.linears)
        assert all(each.error > 1e-3 for each in report.linears)
    else:
        assert all(each.error < 1e-14 for each in report.linears)
    assert all(0.8 < each.excess < 1.2 for each in report.caches)
    assert told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == sorted(done for done, _ in told)


Ranks = list[dict[str, torch.Tensor]]
LAYER = "transformer.layers.1."


def swap_fc_and_gate(ranks: Ranks) -> None:
    for suffix in ("weight", "weights_scaling_factor", "activation_scaling_factor", "prequant_scaling_factor"):
        fc, gate = f"{LAYER}mlp.fc.{suffix}", f"{LAYER}mlp.gate.{suffix}"
        if fc in ranks[0]:
            ranks[0][fc], ranks[0][gate] = ranks[0][gate], ranks[0][fc]


def swap_halves_of_bytes(ranks: Ranks) -> None:
    codes = ranks[0][f"{LAYER}mlp.fc.weight"].view(torch.uint8)
    ranks[0][f"{LAYER}mlp.fc.weight"] = ((codes >> 4) | (codes << 4)).view(torch.int8)


def shift_the_scales_of_outputs(ranks: Ranks) -> None:
    name = f"{LAYER}attention.dense.weights_scaling_factor"
    ranks[0][name] = ranks[0][name].roll(1, dims=0)


def forget_the_factors(ranks: Ranks) -> None:
    name = f"{LAYER}attention.dense.prequant_scaling_factor"
    ranks[0][name] = torch.ones_like(ranks[0][name])


def give_both_ranks_the_same_factors(ranks: Ranks) -> None:
    name = f"{LAYER}mlp.proj.prequant_scaling_factor"
    ranks[1][name] = ranks[0][name]


def enlarge_a_scale(ranks: Ranks) -> None:
    ranks[1][f"{LAYER}attention.qkv.weights_scaling_factor"] *= 1.5


def cut_the_range_of_inputs(ranks: Ranks) -> None:
    for rank in ranks:
        rank[f"{LAYER}mlp.proj.activation_scaling_factor"] /= 4


def halve_the_range_of_inputs(ranks: Ranks) -> None:
    for rank in ranks:
        rank[f"{LAYER}mlp.proj.activation_scaling_factor"] /= 2


def cut_the_range_of_the_cache(ranks: Ranks) -> None:
    ranks[1][f"{LAYER}attention.kv_cache_scaling_factor"] /= 4


def swap_the_columns_of_ranks(ranks: Ranks) -> None:
    name = f"{LAYER}mlp.proj.weight"
    ranks[0][name], ranks[1][name] = ranks[1][name], ranks[0][name]


def repeat_a_row_of_keys(ranks: Ranks) -> None:
    """One of 384 rows becomes another one; the rows of keys come after the 256 of queries."""
    rows = ranks[1][f"{LAYER}attention.qkv.weight"].view(torch.uint8)
    rows[270] = rows[271]


def shift_one_bias(ranks: Ranks) -> None:
    name = f"{LAYER}attention.qkv.bias"
    ranks[1][name] = ranks[1][name].roll(1)


def poison_a_scale(ranks: Ranks) -> None:
    ranks[0][f"{LAYER}mlp.proj.weights_scaling_factor"][0] = float("nan")


def change_a_norm(ranks: Ranks) -> None:
    ranks[1][f"{LAYER}post_layernorm.weight"][3] *= 1.01


def change_the_last_norm(ranks: Ranks) -> None:
    ranks[0]["transformer.ln_f.weight"][3] *= 1.01


def lose_a_row_of_the_embedding(ranks: Ranks) -> None:
    ranks[1]["transformer.vocab_embedding.weight"][200] = 0


def swap_the_halves_of_the_head(ranks: Ranks) -> None:
    ranks[0]["lm_head.weight"], ranks[1]["lm_head.weight"] = ranks[1]["lm_head.weight"], ranks[0]["lm_head.weight"]


def fill_the_padding_of_the_head(ranks: Ranks) -> None:
    ranks[1]["lm_head.weight"][-1] = 1


LINEAR, CACHE, COPY = "linear_excess", "cache_excess", "tensors_differing"


@pytest.mark.parametrize(
    ("name", "damage", "figure"),
    [
        *((name, swap_fc_and_gate, LINEAR) for name in ("fp8", "sq", "awq", "w8", "w4")),
        *((name, swap_the_columns_of_ranks, LINEAR) for name in ("fp8", "sq", "awq", "w8", "w4")),
        ("bf16", repeat_a_row_of_keys, "linear_error"),
        ("bf16", shift_one_bias, COPY),
        ("fp8", enlarge_a_scale, LINEAR),
        ("fp8", cut_the_range_of_inputs, LINEAR),
        ("fp8", repeat_a_row_of_keys, LINEAR),
        ("fp8", shift_one_bias, COPY),
        ("fp8", cut_the_range_of_the_cache, CACHE),
        ("fp8", poison_a_scale, LINEAR),
        ("sq", enlarge_a_scale, LINEAR),
        ("sq", forget_the_factors, LINEAR),
        ("sq", give_both_ranks_the_same_factors, LINEAR),
        ("sq", shift_the_scales_of_outputs, LINEAR),
        ("sq", cut_the_range_of_inputs, LINEAR),
        ("sq", halve_the_range_of_inputs, LINEAR),
        ("sq", cut_the_range_of_the_cache, CACHE),
        ("fp16-kv8", cut_the_range_of_the_cache, CACHE),
        ("awq", swap_halves_of_bytes, LINEAR),
        ("awq", forget_the_factors, LINEAR),
        ("awq", enlarge_a_scale, LINEAR),
        ("awq", shift_the_scales_of_outputs, LINEAR),
        ("w4", change_a_norm, COPY),
        ("fp8", change_the_last_norm, COPY),
        ("awq", lose_a_row_of_the_embedding, COPY),
        ("bf16", swap_the_halves_of_the_head, COPY),
        ("sq", fill_the_padding_of_the_head, COPY),
    ],
)
def test_a_defect_of_one_layer_fails_its_gate_and_no_other(
    written: Written,
    source: Checkpoint,
    prompts: list[Prompt],
    tmp_path: Path,
    name: str,
    damage: Callable[[Ranks], None],
    figure: str,
) -> None:
    shutil.copy(written(name, 2, 1) / "config.json", tmp_path)
    ranks = [load_file(written(name, 2, 1) / f"rank{index}.safetensors") for index in range(2)]
    damage(ranks)
    for index, rank in enumerate(ranks):
        save_file({key: tensor.clone() for key, tensor in rank.items()}, tmp_path / f"rank{index}.safetensors")
    report = compare_layers(source, tmp_path, prompts)
    assert failed(report, FORMATS[name]) == {figure}
    if figure == LINEAR:
        assert worst(report.linears).layer == 1
    if figure == COPY:
        assert len(report.differing) in (1, 2)


def test_what_is_not_a_number_comes_before_all_others() -> None:
    deviations = [Deviation(0, "a", 3.0, 1.0), Deviation(1, "b", float("nan"), 1.0), Deviation(2, "c", 9.0, 1.0)]
    assert worst(deviations).name == "b"
    assert worst(deviations[::2]).name == "c"

"""What layers cost alone, which ones to leave out, and the picture of it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from nvlm_trt.decoder.precision import decoder_precision
from nvlm_trt.errors import VerificationError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.decoder import DecoderReference
from nvlm_trt.recipe import BuildRecipe, parse_recipe
from nvlm_trt.verify.fake_quant import FakeQuantized, OneLayerQuantized, Roundings
from nvlm_trt.verify.gates import CANARY_GATES, Check, Gate, cost_ratio, failed_costs
from nvlm_trt.verify.layer_errors import PROJECTOR, LayerCost, LayerError, table, worst_layers
from nvlm_trt.verify.plot import leave_plot, plot_sensitivity
from nvlm_trt.verify.report import VerifyReport
from nvlm_trt.verify.sensitivity import decoder_costs, recipe_changes, to_exclude, with_advice
from nvlm_trt.verify.subjects import Forced

from .conftest import Narrow

COSTS = [LayerCost("decoder", 0, 0.1), LayerCost("decoder", 1, 0.6), LayerCost("vision", -1, 0.3)]


def recipe_of(target: str, decoder: str, **fields: object) -> BuildRecipe:
    return parse_recipe({"name": "x", "target": target, "decoder_precision": decoder, **fields}, "x")


@pytest.fixture(scope="module")
def source(narrow: Narrow) -> Checkpoint:
    return narrow(2, 4, 1024)


@pytest.mark.parametrize("precision", ["fp8", "int8_sq", "int4_awq"])
def test_a_layer_alone_is_quantised_as_it_is_among_all(source: Checkpoint, precision: str) -> None:
    """With the weights of one layer replaced by hand, and its inputs and cache rounded, the same logits come out."""
    roundings, ids = Roundings.of(decoder_precision(precision)), list(range(3, 17))
    reference = DecoderReference(source)
    alone = [OneLayerQuantized(reference, roundings, layer).logits(ids) for layer in range(2)]
    exact = reference.logits(ids)
    for logits in alone:
        assert not torch.equal(logits, exact)
    assert not torch.equal(*alone)
    by_all = FakeQuantized(source, decoder_precision(precision)).logits(ids)
    errors = [float((logits - exact).norm()) for logits in (*alone, by_all)]
    assert max(errors[:2]) < 1.5 * errors[2]
    assert torch.equal(reference.logits(ids), exact)  # the shared weights were left alone


def test_a_layer_whose_weights_are_exact_in_the_precision_costs_nothing(
    source: Checkpoint,
) -> None:
    reference, roundings = DecoderReference(source), Roundings.of(decoder_precision("int8_wo"))
    for name, weight in reference._weights.items():
        if ".layers.1." in name and weight.ndim == 2:
            reference._weights[name] = roundings.weights(weight)
    request = Forced(np.arange(3, 12, dtype=np.int32), None, [1, 2, 3])
    first, second = decoder_costs(reference, roundings, [request])
    assert first.kl > 1e-6
    assert second.kl < first.kl / 1e4


@pytest.mark.parametrize(
    ("ratio", "names"),
    [(0.5, ["decoder layer 1"]), (0.2, ["decoder layer 1", "projector"]), (0.0, None), (1.0, [])],
)
def test_the_fewest_layers_are_left_out(ratio: float, names: list[str] | None) -> None:
    chosen = to_exclude(COSTS, ratio)
    assert (None if chosen is None else [each.name for each in chosen]) == names


def test_the_gate_that_is_missed_by_most_says_how_far_the_cost_has_to_fall() -> None:
    kl, top1 = Gate("mean_kl_divergence", 0.1, "x"), Gate("top1_agreement", 0.9, "x", at_least=True)
    assert cost_ratio([Check("logits", kl, 0.05), Check("logits", top1, 0.95)]) is None
    assert cost_ratio([Check("logits", kl, 0.2), Check("logits", top1, 0.6)]) == pytest.approx(0.25)
    assert cost_ratio([Check("logits", kl, float("nan"))]) == 0.0
    defect = Check("decoder", Gate("excess", 2.0, "x"), 9.0)
    assert cost_ratio([Check("logits", kl, 0.2), defect]) is None  # a defect is not mended by quantising less


@pytest.mark.parametrize(
    ("figure", "value", "advised"), [("response", 0.0, False), ("control", 0.9, False), ("answers_unchanged", 1, True)]
)
def test_nothing_is_advised_where_images_do_not_arrive_or_do_not_stay_the_same(
    figure: str, value: float, advised: bool
) -> None:
    """A few answers that do not change with the image are what too few bits do, too."""
    (gate,) = (gate for gate in CANARY_GATES if gate.figure == figure)
    kl, canary = Check("logits", Gate("mean_kl_divergence", 0.1, "x"), 0.2), Check("canary", gate, value)
    assert not canary.ok
    assert failed_costs([kl, canary]) == ([kl] if advised else [])


@pytest.mark.parametrize(
    ("part", "figure", "names"),
    [
        ("logits", "mean_kl_divergence", ("decoder layer 1",)),
        ("decoder", "mean_cosine_distance", ("decoder layer 1",)),
        ("vision", "mean_cosine_distance", ()),  # all that is quantised there would have to go
    ],
)
def test_advice_is_about_the_layers_of_the_part_that_failed(part: str, figure: str, names: tuple[str, ...]) -> None:
    report = VerifyReport({}, (Check(part, Gate(figure, 0.5, "x"), 1.0),), {}, ())
    recipe = recipe_of("cpu", "int8_wo")
    advised = with_advice(report, COSTS, recipe)
    assert tuple(each.name for each in advised.excluded) == names
    assert ("will not do" in advised.remarks[0]) is (not names)
    defect = VerifyReport({}, (*report.checks, Check("decoder", Gate("excess", 2.0, "x"), 9.0)), {}, ())
    assert with_advice(defect, COSTS, recipe).remarks == ()
    assert "Nothing is quantised" in with_advice(VerifyReport({}, (), {}, ()), (), recipe).remarks[0]


LAYERS = {
    name: LayerCost(*name, 0.1) for name in (("decoder", 3), ("decoder", 0), ("vision", 5), ("vision", PROJECTOR))
}


@pytest.mark.parametrize(
    ("target", "precision", "exclude", "layers", "changes"),
    [
        ("cpu", "int8_wo", [], [("decoder", 3), ("decoder", 0)], ("exclude_layers: [0, 3]",)),
        ("cpu", "int8", [1], [("decoder", 3)], ("exclude_layers: [1, 3]",)),
        ("cpu", "bf16", [], [("vision", PROJECTOR)], ("vision_precision: bf16",)),
        ("cpu", "int4_wo", [], [("decoder", 0), ("vision", 5)], ("vision_precision: bf16", "exclude_layers: [0]")),
        ("gpu", "int4_awq", [], [("decoder", 3)], ("decoder_precision: int8_wo",)),
        ("gpu", "fp8", [], [("vision", 5), ("decoder", 0)], ("vision_precision: bf16", "decoder_precision: int8_wo")),
        ("gpu", "int8_wo", [], [("decoder", 3)], ("decoder_precision: bf16",)),
        ("gpu", "fp16", [], [("decoder", 3)], ("decoder_engine: {kv_cache_precision: model}",)),
    ],
)
def test_what_is_advised_is_a_line_that_the_recipe_takes(
    target: str, precision: str, exclude: list[int], layers: list[tuple[str, int]], changes: tuple[str, ...]
) -> None:
    """Layers of vision, and those of the gpu target, cannot be left out one by one."""
    recipe = recipe_of(target, precision, vision_precision="int8", exclude_layers=exclude)
    assert recipe_changes([LAYERS[name] for name in layers], recipe) == changes
    fields = recipe.model_dump(mode="json")
    for line in changes:
        fields |= yaml.safe_load(line)
    changed = parse_recipe(fields, "changed")
    assert changed != recipe or precision == "fp16"  # whose cache is the model's already


def test_a_failed_gate_says_which_lines_of_the_recipe_to_change() -> None:
    checks = (Check("logits", Gate("mean_kl_divergence", 0.2, "x"), 1.0),)
    report = with_advice(VerifyReport({}, checks, {}, ()), COSTS, recipe_of("cpu", "int8_wo"))
    assert [each.name for each in report.excluded] == ["decoder layer 1", "projector"]
    lines = "vision_precision: bf16, exclude_layers: [1]"
    assert report.remarks[0].endswith(f"In the recipe: {lines}")
    assert report.as_json()["recipe_changes"] == ["vision_precision: bf16", "exclude_layers: [1]"]
    with pytest.raises(VerificationError) as raised:
        report.require_ok()
    assert raised.value.fix == f"change the recipe: {lines}"


def test_the_worst_layer_of_each_part_is_the_one_furthest_from_its_yardstick_or_not_a_number() -> None:
    errors = [LayerError("vision", 0, "after", 0.1), LayerError("vision", 1, "after", 0.2)]
    errors += [LayerError("decoder", 0, "mlp.fc", 0.3, 0.3), LayerError("decoder", 1, "mlp.fc", 0.2, 0.1)]
    assert [each.layer for each in worst_layers(errors)] == [1, 1]
    assert [line.endswith("<- worst") for line in table(errors)] == [False, False, True, False, True]
    errors.append(LayerError("decoder", 2, "mlp.fc", float("nan"), 0.1))
    assert worst_layers(errors)[1].layer == 2


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs matplotlib, the extra plots")
def test_the_picture_shows_every_layer_and_marks_those_to_leave_out(tmp_path: Path) -> None:
    report = VerifyReport({}, (), {}, (), costs=tuple(COSTS), excluded=(COSTS[1],))
    assert leave_plot(report, tmp_path) == [f"The sensitivity of layers is drawn in {tmp_path / 'sensitivity.png'}."]
    marked = np.asarray(Image.open(tmp_path / "sensitivity.png").convert("RGB")).astype(int)
    plot_sensitivity(COSTS, (), tmp_path / "plain.png")
    plain = np.asarray(Image.open(tmp_path / "plain.png").convert("RGB")).astype(int)
    red = [((each[..., 0] > 180) & (each[..., 1] < 80)).sum() for each in (marked, plain)]
    assert red[0] > 1000
    assert red[1] == 0


def test_without_matplotlib_the_figures_are_told_and_nothing_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nvlm_trt.verify.plot.find_spec", lambda _name: None)
    report = VerifyReport({}, (), {}, (), costs=tuple(COSTS))
    (line,) = leave_plot(report, tmp_path)
    assert "needs matplotlib" in line
    assert list(tmp_path.iterdir()) == []
    assert report.layer_lines()[0] == "each layer quantised alone"
    assert leave_plot(VerifyReport({}, (), {}, ()), tmp_path) == []

"""The gates: frozen figures, and what passes them."""

from __future__ import annotations

import json
import math
from typing import get_args

import pytest

from nvlm_trt.decoder.precision import QuantAlgo
from nvlm_trt.errors import RecipeError, VerificationError
from nvlm_trt.recipe import CPU_DECODER, DecoderPrecision, VisionPrecision, parse_recipe
from nvlm_trt.verify.gates import (
    ANSWER_GATES,
    BITS,
    CANARY_GATES,
    DECODER_GATES,
    EMULATED_VISION_GATES,
    LINEAR_GATES,
    LOGIT_GATES,
    RANKS_GATES,
    TASK_GATES,
    VISION_GATES,
    Check,
    Gate,
    answer_gates,
    bounded,
    judge,
    judge_parts,
)
from nvlm_trt.verify.report import VerifyReport, short

GATE = Gate("distance", 0.5, "because")


def report(value: float) -> VerifyReport:
    checks = tuple(judge("decoder", (GATE,), {"distance": value}))
    figures = {"decoder": {"distance": value, "other": math.inf}}
    return VerifyReport({"decoder": "bf16"}, checks, figures, ("a remark",))


def test_every_precision_has_gates_with_reasons() -> None:
    assert set(VISION_GATES) == set(EMULATED_VISION_GATES) == set(get_args(VisionPrecision))
    assert set(DECODER_GATES) >= set(CPU_DECODER)
    assert set(RANKS_GATES) == set(get_args(DecoderPrecision)) - {"fp32", "int8"}
    assert set(BITS) == set(get_args(VisionPrecision)) | set(get_args(DecoderPrecision))
    assert set(LOGIT_GATES) == set(TASK_GATES) == set(BITS.values())
    every = (VISION_GATES, DECODER_GATES, ANSWER_GATES, RANKS_GATES, LOGIT_GATES, TASK_GATES)
    for gates in (*(gates for table in every for gates in table.values()), CANARY_GATES):
        assert all(gate.reason for gate in gates)


def test_limits_are_those_that_the_project_promises() -> None:
    """A change here is a change of the promise: it needs a reason, not a failing engine."""
    limits = {
        (name, gate.figure): gate.limit
        for name, gates in (("vision", VISION_GATES), ("decoder", DECODER_GATES))
        for gate in gates["fp32"]
    }
    assert limits == {
        ("vision", "max_rel_error"): 1e-4,
        ("decoder", "max_rel_error"): 1e-4,
        ("decoder", "tokens_differing"): 0,
    }
    for gates in (VISION_GATES["bf16"], DECODER_GATES["bf16"], DECODER_GATES["int8_wo"]):
        assert {gate.figure: gate.limit for gate in gates}["excess"] == 2.0


@pytest.mark.parametrize(
    ("vision", "decoder", "drop", "kl"),
    [
        ("fp32", "fp32", 0, 1e-6),
        ("bf16", "bf16", 1, 0.05),
        ("bf16", "fp8", 1, 0.1),
        ("int8", "bf16", 1, 0.1),
        ("bf16", "int8_sq", 1, 0.1),
        ("fp8", "int4_awq", 2, 0.3),
    ],
)
def test_the_part_with_fewer_bits_sets_the_bounds_on_answers(vision: str, decoder: str, drop: float, kl: float) -> None:
    target = "cpu" if decoder == "fp32" else "gpu"
    fields = {"name": "x", "target": target, "vision_precision": vision, "decoder_precision": decoder}
    gates = answer_gates(parse_recipe(fields, "x"))
    assert gates["task"][0].limit == drop
    assert gates["logits"][0].limit == kl


def test_the_recipe_sets_every_bound_on_what_a_precision_may_cost_and_no_other() -> None:
    fields = {
        "projector_mean_distance": 0.11,
        "projector_worst_distance": 0.12,
        "logit_distance": 0.13,
        "logit_kl": 0.14,
        "top1_agreement": 0.15,
        "canary_response": 0.16,
        "canary_unchanged": 1,
        "task_accuracy_drop": 0.17,
    }
    recipe = parse_recipe({"name": "x", "target": "cpu", "gates": fields}, "x")
    gates = {"vision": VISION_GATES["bf16"], "decoder": DECODER_GATES["bf16"], **answer_gates(recipe)}
    seen = {(part, gate.figure): gate.limit for part, own in gates.items() for gate in bounded(part, own, recipe.gates)}
    assert seen == {
        ("vision", "excess"): 2.0,
        ("vision", "mean_cosine_distance"): 0.11,
        ("vision", "max_cosine_distance"): 0.12,
        ("decoder", "excess"): 2.0,
        ("decoder", "mean_cosine_distance"): 0.13,
        ("logits", "mean_kl_divergence"): 0.14,
        ("logits", "top1_agreement"): 0.15,
        ("canary", "response"): 0.16,
        ("canary", "control"): 0.05,
        ("canary", "answers_unchanged"): 1.0,
        ("task", "accuracy_drop"): 0.17,
    }
    with pytest.raises(RecipeError, match=r"unknown field gates\.logit_kk, did you mean logit_kl"):
        parse_recipe({"name": "x", "target": "cpu", "gates": {"logit_kk": 1}}, "x")


def test_smoothquant_bound_lies_between_little_calibration_and_inputs_cut_to_half_their_range() -> None:
    """Figures of random decoders: 12 layers after 495 tokens, and a layer of four whose inputs are cut."""
    (gate,) = LINEAR_GATES[QuantAlgo.SMOOTH_QUANT]
    assert Check("layers", gate, 2.38).ok
    assert not Check("layers", gate, 3.44).ok


def test_a_gate_may_ask_for_a_least_value() -> None:
    (agreement,) = judge("logits", (Gate("top1_agreement", 0.9, "because", at_least=True),), {"top1_agreement": 0.91})
    assert agreement.ok
    assert not Check("logits", agreement.gate, 0.89).ok
    assert not Check("logits", agreement.gate, math.nan).ok


def test_a_part_that_was_not_measured_is_a_fault_unless_it_was_not_to_be() -> None:
    """Else an engine would pass whatever nobody looked at."""
    recipe = parse_recipe({"name": "x", "target": "cpu"}, "x")
    gates, canary = answer_gates(recipe), {"response": 1.0, "control": 0.0, "answers_unchanged": 0}
    figures = {"logits": {"mean_kl_divergence": 1.0, "top1_agreement": 1.0}, "canary": canary}
    checks = judge_parts(gates, figures, recipe.gates, without=("task",))
    assert [check.ok for check in checks] == [False, True, True, True, True]
    with pytest.raises(KeyError, match="task"):
        judge_parts(gates, figures, recipe.gates)
    with pytest.raises(KeyError, match="response"):
        judge_parts(gates, {**figures, "canary": {}}, recipe.gates, without=("task",))


@pytest.mark.parametrize(
    ("value", "ok"), [(0.0, True), (0.5, True), (0.51, False), (math.nan, False), (math.inf, False)]
)
def test_a_figure_passes_up_to_the_limit_and_nan_never(value: float, ok: bool) -> None:
    assert Check("decoder", GATE, value).ok is ok
    assert report(value).ok is ok


def test_a_gate_whose_figure_was_not_measured_is_a_fault() -> None:
    with pytest.raises(KeyError, match="distance"):
        judge("decoder", (GATE,), {})


def test_a_report_names_what_failed_and_is_valid_json_also_with_nan() -> None:
    failed = report(math.nan)
    with pytest.raises(VerificationError, match=r"seen: decoder distance nan; expected: at most 0\.5"):
        failed.require_ok()
    body = json.loads(failed.encoded(), parse_constant=pytest.fail)
    assert body["checks"][0]["value"] is None
    assert body["figures"]["decoder"]["other"] is None
    assert "FAILED" in failed.lines()[0]
    report(0.1).require_ok()
    assert report(0.1).lines()[-1] == "a remark"


def test_figures_are_written_with_three_digits() -> None:
    assert short(0.000123456) == 0.000123

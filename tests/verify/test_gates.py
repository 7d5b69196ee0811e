"""The gates: frozen figures, and what passes them."""

from __future__ import annotations

import json
import math

import pytest

from nvlm_trt.errors import VerificationError
from nvlm_trt.recipe import CPU_DECODER, CPU_VISION
from nvlm_trt.verify.gates import ANSWER_GATES, DECODER_GATES, VISION_GATES, Check, Gate, judge
from nvlm_trt.verify.report import VerifyReport, short

GATE = Gate("distance", 0.5, "because")


def report(value: float) -> VerifyReport:
    checks = tuple(judge("decoder", (GATE,), {"distance": value}))
    figures = {"decoder": {"distance": value, "other": math.inf}}
    return VerifyReport({"decoder": "bf16"}, checks, figures, ("a remark",))


def test_every_precision_of_the_cpu_target_has_gates_with_reasons() -> None:
    assert set(VISION_GATES) == set(CPU_VISION)
    assert set(DECODER_GATES) == set(CPU_DECODER)
    for gates in (*VISION_GATES.values(), *DECODER_GATES.values(), *ANSWER_GATES.values()):
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

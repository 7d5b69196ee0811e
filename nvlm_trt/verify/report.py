"""What `verify` found: verify.json, and a table for people."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from nvlm_trt.errors import VerificationError
from nvlm_trt.verify.gates import Check
from nvlm_trt.verify.layer_errors import LayerCost, LayerError, said_worst, table

Figures = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The outcome for one engine directory.

    Attributes:
        precisions: Of `vision` and `decoder`.
        checks: Every gate with its figure.
        figures: Everything that was measured, by part.
        remarks: What was found besides, or could not be done in full, one sentence each.
        layers: Errors layer by layer.
        costs: What each layer costs when it is quantised alone; empty where that was not measured.
        excluded: The fewest layers without whose quantisation all figures come within their bounds, by the costs.
        changes: Lines of the recipe that see to it, or that give their part more bits.
    """

    precisions: Mapping[str, str]
    checks: tuple[Check, ...]
    figures: Figures
    remarks: tuple[str, ...]
    layers: tuple[LayerError, ...] = ()
    costs: tuple[LayerCost, ...] = ()
    excluded: tuple[LayerCost, ...] = ()
    changes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every gate passed."""
        return all(check.ok for check in self.checks)

    def as_json(self) -> dict[str, object]:
        """The content of verify.json. It holds no times: equal engines give equal bytes."""
        checks = [
            {"part": check.part, **dataclasses.asdict(check.gate), "value": finite(check.value), "ok": check.ok}
            for check in self.checks
        ]
        figures = {
            part: {name: finite(value) for name, value in figures.items()} for part, figures in self.figures.items()
        }
        return {
            "ok": self.ok,
            "precisions": dict(self.precisions),
            "checks": checks,
            "figures": figures,
            "layers": [_rounded(each) for each in self.layers],
            "sensitivity": [_rounded(each) for each in self.costs],
            "exclude": [each.name for each in self.excluded],
            "recipe_changes": list(self.changes),
            "remarks": list(self.remarks),
        }

    def encoded(self) -> bytes:
        """verify.json."""
        return (json.dumps(self.as_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()

    def lines(self) -> list[str]:
        """One line a gate: part, figure, value, limit, verdict; where one failed the layers too, one line each."""
        gates = [
            f"{check.part:<9} {check.gate.figure:<20} {short(check.value):>10} "
            f"{check.sign} {check.gate.limit:<7g} {'ok' if check.ok else 'FAILED'}"
            for check in self.checks
        ]
        return [*gates, *([] if self.ok else self.layer_lines()), *self.remarks]

    def layer_lines(self) -> list[str]:
        """The errors of all layers, and what they cost where that was measured, one line each."""
        costs = [f"{each.name:<20} {short(each.kl):>10} nats" for each in self.costs]
        return [
            *(table(self.layers) if self.layers else []),
            *(["each layer quantised alone", *costs] if costs else []),
        ]

    def require_ok(self) -> None:
        """Insist on it.

        Raises:
            VerificationError: naming every gate that failed.
        """
        failed = [f"{check.part} {check.gate.figure} {short(check.value)}" for check in self.checks if not check.ok]
        if failed:
            limits = [
                f"{'at least' if check.gate.at_least else 'at most'} {check.gate.limit:g}"
                for check in self.checks
                if not check.ok
            ]
            advice = [f"worst: {said_worst(self.layers)}"] if self.layers else []
            if self.changes:
                advice.append(f"change the recipe: {', '.join(self.changes)}")
            raise VerificationError(
                "the engine differs from the reference",
                seen=", ".join(failed),
                expected=", ".join(limits),
                fix="; ".join(advice) or None,
            )


def _rounded(each: LayerError | LayerCost) -> dict[str, object]:
    """As JSON holds it."""
    return {
        name: finite(value) if isinstance(value, float) else value for name, value in dataclasses.asdict(each).items()
    }


def finite(value: float) -> float | None:
    """The figure as JSON can hold it: shortened, None for NaN and infinity."""
    return short(value) if math.isfinite(value) else None


def short(value: float) -> float:
    """Three significant digits: what a figure means, without the noise of a summation order."""
    return float(f"{value:.3g}")

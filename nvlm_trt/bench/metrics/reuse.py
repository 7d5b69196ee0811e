"""What an image or a conversation costs that was there before."""

from __future__ import annotations

from collections.abc import Iterator

from nvlm_trt.bench.metrics.base import Measured, Metric
from nvlm_trt.bench.record import CaseRecord, ScenarioName


class NewImage(Metric):
    """What the largest image costs when it is new.

    Formula: TTFT of a request about an image of as many tiles as the recipe allows (6 and the thumbnail), asked alone,
    never seen before; an answer of one token. One sample a pair of scenario `repeat`.
    """

    name, title, unit, better, section = "new_image_ttft", "TTFT of a new image", "ms", "lower", "reuse"

    def samples(self, measured: Measured) -> list[float]:
        """One number a pair."""
        return [1e3 * case.requests[0].ttft_s for case in _cases(measured, "repeat", "first")]


class RepeatedImage(Metric):
    """The same image under another text: only what vision made of it can be of use again.

    Formula: TTFT of a request whose text stands in front of an image that was asked about before under another text /
    TTFT of that first request; same pixels, same tiling; one sample a pair.
    """

    name, title, unit, better, section = "repeated_image", "same image, other text / new image", "x", "lower", "reuse"

    def samples(self, measured: Measured) -> list[float]:
        """One number a pair."""
        return _ratios(measured, "repeat", "other text in front")


class RepeatedQuestion(Metric):
    """The same image under the same text: vision and the keys and values of the prompt can be of use again.

    Formula: TTFT of a request that is asked again, word for word and pixel for pixel / TTFT of its first time; one
    sample a pair.
    """

    name, title, unit, better, section = (
        *("repeated_question", "same image, same text / new image", "x"),
        *("lower", "reuse"),
    )

    def samples(self, measured: Measured) -> list[float]:
        """One number a pair."""
        return _ratios(measured, "repeat", "again")


class SecondTurn(Metric):
    """A chat about an image that goes on.

    Formula: TTFT of a second question, with the first one, its image and an answer in the history / TTFT of the first
    question; the image has as many tiles as the recipe allows; one sample a pair of scenario `turns`.
    """

    name, title, unit, better, section = "second_turn", "second turn / first turn", "x", "lower", "reuse"

    def samples(self, measured: Measured) -> list[float]:
        """One number a pair."""
        return _ratios(measured, "turns", "second")


def _ratios(measured: Measured, scenario: ScenarioName, case: str) -> list[float]:
    """TTFT of a case by that of the first case, pair by pair."""
    firsts, laters = _cases(measured, scenario, "first"), _cases(measured, scenario, case)
    pairs = [(first.requests[0].ttft_s, later.requests[0].ttft_s) for first, later in zip(firsts, laters, strict=True)]
    return [later / first for first, later in pairs if first]


def _cases(measured: Measured, scenario: ScenarioName, case: str) -> Iterator[CaseRecord]:
    return (each for done in measured.rounds for each in done.cases_of(scenario, case))

"""The right answers: what the same engine says in this process, alone and among others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from nvlm_trt.decoder.request import SamplingParams
from nvlm_trt.local import LocalEngine

from .cases import Case


@dataclass(frozen=True, slots=True)
class Expected:
    """What an answer has to be."""

    text: str
    finish_reason: str
    num_input_tokens: int
    num_output_tokens: int


def take_references(
    engine_dir: Path, cases: Sequence[Case], *, tick: Callable[[], None]
) -> tuple[dict[str, Expected], list[str]]:
    """Ask the engine in this process for every case twice: alone, then eight at a time.

    Where two tokens are as good as each other, rounding decides, and it hangs on the batch. Such cases prove nothing
    of a server and are left out.

    Args:
        engine_dir: The engine that the server runs, too.
        cases: What is asked.
        tick: Called after every answer.

    Returns:
        The answers of the cases that have one, by name; names of those that have two.
    """
    with LocalEngine(engine_dir) as engine:

        def ask(case: Case) -> Expected:
            answer = _ask(engine, case)
            tick()
            return answer

        alone = [ask(case) for case in cases]
        with ThreadPoolExecutor(8, thread_name_prefix="reference") as callers:
            together = list(callers.map(ask, cases))
    firm = {case.name: one for case, one, other in zip(cases, alone, together, strict=True) if one == other}
    return firm, [case.name for case in cases if case.name not in firm]


def _ask(engine: LocalEngine, case: Case) -> Expected:
    asked = case.options
    sampling = SamplingParams(
        max_tokens=asked.max_tokens or 1,
        min_tokens=asked.min_tokens or 0,
        temperature=asked.temperature,
        top_p=asked.top_p,
        seed=asked.seed,
    )
    answer = engine.generate(case.question, sampling, images=case.images, history=case.history)
    return Expected(answer.text, answer.finish_reason, len(answer.input_ids), len(answer.output_ids))

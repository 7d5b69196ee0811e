"""The gate on a task: the score of the engine and of the float32 reference on the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nvlm_trt.errors import UserError
from nvlm_trt.eval.answer import Answerer, AnswerOptions
from nvlm_trt.eval.records import Record
from nvlm_trt.eval.run import run_eval
from nvlm_trt.eval.tasks import Sample, read_tasks
from nvlm_trt.miniature import shipped
from nvlm_trt.progress import Log
from nvlm_trt.recipe import BuildRecipe
from nvlm_trt.verify.measures import accuracy_drop

Figures = dict[str, float]
TOLD_EVERY = 50
"""Samples between two lines of progress."""


def task_samples(recipe: BuildRecipe) -> tuple[Sample, ...]:
    """The samples of the recipe's task; none where it names no task.

    Raises:
        UserError: the file is at fault.
    """
    fields = recipe.gates
    if fields.task is None:
        return ()
    return read_tasks(shipped.resolve(fields.task, shipped.GATE_TASK))[: fields.task_samples]


def task_options(recipe: BuildRecipe) -> AnswerOptions:
    """How samples are asked: answers of `verify_tokens` tokens where a sample does not say."""
    return AnswerOptions(max_tokens=recipe.verify_tokens)


def answered(who: str, answerer: Answerer, samples: Sequence[Sample], log: Log, work: Path | None) -> list[Record]:
    """All samples answered and scored; a run that was killed goes on where it was.

    Args:
        who: What the records are called: "engine" or "reference".
        answerer: Answers them.
        samples: At least one.
        log: Told how far it is.
        work: Where records are kept; None keeps none.
    """

    def told(done: int, total: int) -> None:
        if done % TOLD_EVERY == 0:
            log(f"task: {done} of {total} samples answered by the {who}")

    return run_eval(samples, answerer, output=None if work is None else work / who, progress=told)


def task_figures(ours: Sequence[Record], theirs: Sequence[Record]) -> tuple[Figures, list[str]]:
    """Figures of the part `task`, and what to know of them.

    Args:
        ours: Records of what is judged.
        theirs: The reference's, of the same samples.

    Raises:
        UserError: the reference could not answer some samples: they are wrong on both sides, whatever is judged.
    """
    if unanswered := [each.error for each in theirs if each.error is not None]:
        raise UserError(
            "the reference cannot answer samples of the task, so they judge nothing",
            seen=f"{len(unanswered)} of {len(theirs)}, the first: {unanswered[0]}",
            expected="none",
            fix="mend them or leave them out of gates.task, or widen image_limits in the recipe",
        )
    mine, reference = [each.score for each in ours], [each.score for each in theirs]
    refused = [each.error for each in ours if each.error is not None]
    figures: Figures = {
        "samples": len(ours),
        "accuracy": sum(mine) / len(mine),
        "reference_accuracy": sum(reference) / len(reference),
        "accuracy_drop": accuracy_drop(mine, reference),
        "answers_differing": sum(one.text != other.text for one, other in zip(ours, theirs, strict=True)),
        "samples_refused": len(refused),
    }
    if not refused:
        return figures, []
    return figures, [f"{len(refused)} samples of the task were refused and count as wrong, the first: {refused[0]}"]

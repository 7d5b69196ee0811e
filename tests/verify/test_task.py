"""The gate on a task: what its figures say, and which tasks can judge nothing."""

from __future__ import annotations

import pytest

from nvlm_trt.errors import UserError
from nvlm_trt.eval.records import Record
from nvlm_trt.verify.task import task_figures


def record(name: str, score: float, error: str | None = None) -> Record:
    return Record(name, name, "", "?", ("yes",), "" if error else "yes", score, error=error)


def test_what_the_engine_alone_refuses_counts_as_wrong() -> None:
    figures, remarks = task_figures([record("a", 1), record("b", 0, "too long")], [record("a", 1), record("b", 1)])
    assert (figures["accuracy_drop"], figures["samples_refused"]) == (50, 1)
    assert remarks == ["1 samples of the task were refused and count as wrong, the first: too long"]


def test_a_task_that_the_reference_cannot_answer_is_refused() -> None:
    refused = [record("a", 1), record("b", 0, "the image is too large"), record("c", 0, "the image is damaged")]
    with pytest.raises(
        UserError, match=r"judge nothing; seen: 2 of 3, the first: the image is too large; .*image_limits"
    ):
        task_figures(refused, refused)

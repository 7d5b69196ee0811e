"""Samples, and one who answers without a model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from nvlm_trt.eval.answer import Answer
from nvlm_trt.eval.tasks import Metric, Sample

MakeSample = Callable[..., Sample]


@pytest.fixture
def sample() -> MakeSample:
    """Makes samples whose right answer is "yes"."""

    def make(
        name: str,
        *,
        images: tuple[Path, ...] = (),
        answers: tuple[str, ...] = ("yes",),
        metric: Metric = "exact",
        category: str = "",
        max_tokens: int | None = None,
        max_tiles: int | None = None,
    ) -> Sample:
        return Sample(
            name, images, f"{name}?", (), answers, metric, category=category, max_tokens=max_tokens, max_tiles=max_tiles
        )

    return make


class Scripted:
    """Answers by id; raises what it is given to raise. Remembers whom it was asked about."""

    def __init__(self, answers: dict[str, str | Exception], default: str = "no") -> None:
        self.answers, self.default = answers, default
        self.asked: list[str] = []
        self._lock = threading.Lock()

    def answer(self, sample: Sample) -> Answer:
        with self._lock:
            self.asked.append(sample.id)
        said = self.answers.get(sample.id, self.default)
        if isinstance(said, Exception):
            raise said
        return Answer(said, len(said.split()), 0.5)


@pytest.fixture
def scripted() -> type[Scripted]:
    return Scripted

"""Questions of a split as an evaluation task: a JSONL and its pictures, for ``nvlm-trt eval`` and the gates."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nvlm_trt.errors import UserError
from nvlm_trt.miniature.assets import Split
from nvlm_trt.miniature.scenes import (
    Example,
    Scene,
    arithmetic,
    chart,
    compare,
    copying,
    follow_up,
    objects,
    signs,
    tiny,
)

ASKED: dict[str, tuple[Scene, ...]] = {
    "ocr": (signs,),
    "tiny": (tiny,),
    "colour": (objects, signs),
    "shape": (objects,),
    "position": (objects, signs),
    "count": (objects,),
    "tile": (objects, tiny),
    "chart": (chart,),
    "compare": (compare,),
    "follow-up": (follow_up,),
    "text": (arithmetic, copying),
}
"""The scenes that the questions of a category come from, in turn."""

SEALED_SEED = 20_240_917
"""Of the sealed test split; no other use of the generator has it."""

TASK_NAME = "task.jsonl"
MAX_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Question:
    """One turn of an example, with the turn that it leans on, if any."""

    example: Example
    turn: int

    @property
    def history(self) -> tuple[int, ...]:
        """Turns that come before: a follow-up needs the first one."""
        return (0,) if self.example.turns[self.turn].category == "follow-up" else ()


def questions(split: Split, seed: int, per_category: int, tile: int) -> Iterator[tuple[str, Question]]:
    """Questions of every category with their ids: equal arguments give equal questions.

    Args:
        split: Whose fonts, words and photographs are shown.
        seed: Seed of all of them.
        per_category: Questions of each category of ASKED.
        tile: Side of a tile in pixels.
    """
    for number, (category, scenes) in enumerate(ASKED.items()):
        found, tried = 0, 0
        while found < per_category:
            rng = np.random.default_rng([seed, number, tried])
            example = scenes[tried % len(scenes)](rng, split, tile)
            tried += 1
            fitting = [index for index, turn in enumerate(example.turns) if turn.category == category]
            if fitting:
                yield f"{category}-{found:03d}", Question(example, int(rng.choice(fitting)))
                found += 1


def write_task(
    out: Path,
    split: Split,
    *,
    seed: int,
    per_category: int,
    tile: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write a task directory: task.jsonl and images/, which appears whole, by renaming.

    Args:
        out: The directory; nothing may be there.
        split: As `questions`.
        seed: As `questions`.
        per_category: As `questions`.
        tile: As `questions`.
        progress: Told questions done and in all.

    Returns:
        The JSONL file.

    Raises:
        UserError: there is something at `out`.
    """
    if out.exists():
        raise UserError("there is something at the output already", seen=out, fix="remove it or name another directory")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "images").mkdir(parents=True)
    try:
        with (partial / TASK_NAME).open("w", encoding="utf-8") as file:
            for done, (name, question) in enumerate(questions(split, seed, per_category, tile), start=1):
                print(json.dumps(_line(name, question, partial)), file=file)
                progress(done, per_category * len(ASKED))
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out / TASK_NAME


def _line(name: str, question: Question, folder: Path) -> dict[str, object]:
    example, turn = question.example, question.example.turns[question.turn]
    files = []
    for index, picture in enumerate(example.pictures):
        file = f"images/{name}{'' if index == 0 else f'-{index + 1}'}.png"
        picture.image.save(folder / file, optimize=True)
        files.append(file)
    said = [*((example.turns[index].question, example.turns[index].answer) for index in question.history)]
    placeholders = "<image>\n" * len(files)
    asked = turn.question
    if said:
        said[0] = (placeholders + said[0][0], said[0][1])
    else:
        asked = placeholders + asked
    return {
        "id": name,
        "images": files,
        "question": asked,
        "history": said,
        "answers": [turn.answer],
        "metric": "exact",
        "category": turn.category,
        "max_tokens": MAX_TOKENS,
    }

"""A task file of `nvlm-trt eval` for lmms-eval: the same prompts, the same score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

FOLDER = Path("nvlm_trt/miniature/gate")
"""Where the images of the task lie, seen from where lmms-eval is started; absolute paths stand for themselves."""

Doc = dict[str, Any]


def pictures(doc: Doc) -> list[Image.Image]:
    """The images, in the order of their places in the prompt."""
    return [Image.open(FOLDER / name).convert("RGB") for name in doc["images"]]


def messages(doc: Doc) -> list[dict[str, Any]]:
    """The conversation: every message of the user has the images whose places (`<image>`) its text names."""
    images = iter(pictures(doc))

    def said(role: str, text: str) -> dict[str, Any]:
        shown = [{"type": "image", "url": next(images)} for _ in range(text.count("<image>"))]
        return {"role": role, "content": [*shown, {"type": "text", "text": text}]}

    turns = [
        said(role, text) for turn in doc["history"] for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    return [*turns, said("user", doc["question"])]


def score(doc: Doc, results: list[str]) -> dict[str, float]:
    """1 where the answer is a right one, stripped and case-folded, as the metric `exact` of `nvlm-trt eval` has it."""
    right = {answer.strip().casefold() for answer in doc["answers"]}
    return {"exact": float(results[0].strip().casefold() in right)}

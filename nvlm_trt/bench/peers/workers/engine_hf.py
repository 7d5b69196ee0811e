"""Hugging Face transformers: Qwen2ForCausalLM and its `generate`, in bf16, a batch at a time."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any


def prepare(job: dict[str, Any]) -> None:
    """Import what is loaded with."""
    import torch
    import transformers  # noqa: F401

    if job["threads"]:
        torch.set_num_threads(job["threads"])


class Engine:
    """Answers all waiting requests as one batch, and only then the next ones: `generate` takes no newcomers.

    Args:
        job: `checkpoint`.
    """

    gather_s = 0.002
    settings = "Qwen2ForCausalLM.generate, attention sdpa, static batch"

    def __init__(self, job: dict[str, Any]) -> None:
        self._model = importlib.import_module("qwen2").open_qwen2(Path(job["checkpoint"]))
        self._waiting: list[tuple[int, list[int], int]] = []
        self.prompts: dict[int, int] = {}

    def submit(self, number: int, ids: list[int], max_tokens: int, *, text: str | None, image: bytes | None) -> None:
        """Take a request; one with an image is refused."""
        if image is not None:
            raise ValueError("this peer reads text only")
        self._waiting.append((number, ids, max_tokens))
        self.prompts[number] = len(ids)

    def step(self) -> list[tuple[int, int, float, bool]]:
        """Answer everything that waits: request, token, time, whether it is the last, in the order of time."""
        import torch

        batch, self._waiting = self._waiting, []
        longest, most = max(len(ids) for _, ids, _ in batch), max(count for _, _, count in batch)
        padded = torch.tensor([[0] * (longest - len(ids)) + ids for _, ids, _ in batch])
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for _, ids, _ in batch])
        times: list[float] = []

        def clock(ids: Any, scores: Any, **others: Any) -> Any:
            times.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool)

        found = self._model.generate(
            padded,
            attention_mask=mask,
            max_new_tokens=most,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            stopping_criteria=[clock],
        )[:, longest:].tolist()
        return [
            (number, found[row][place], at, place == count - 1)
            for place, at in enumerate(times)
            for row, (number, _, count) in enumerate(batch)
            if place < count
        ]

"""OpenVINO GenAI: its pipeline of continuous batching over the decoder that `export_genai` has converted."""

from __future__ import annotations

import time
from typing import Any

CACHE_GB = 1
"""Of the KV cache: some 80,000 tokens at the shapes of `synth --size small`."""

STEP_TOKENS = 4096
"""Read in a step at most, as for vLLM; its own choice is 256."""


def prepare(job: dict[str, Any]) -> None:
    """Import what is loaded with."""
    import openvino_genai  # noqa: F401


class Engine:
    """Continuous batching.

    Args:
        job: `model` (a folder of OpenVINO's IR), `precision`, `threads`, `max_requests`, `max_model_len`.
    """

    gather_s = 0.0

    def __init__(self, job: dict[str, Any]) -> None:
        import openvino_genai as genai

        properties: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "bf16"}
        if job["precision"] == "bf16":
            properties["KV_CACHE_PRECISION"] = "bf16"  # its own choice is 8 bits
        if job["threads"]:
            properties["INFERENCE_NUM_THREADS"] = job["threads"]
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = CACHE_GB
        scheduler.max_num_seqs = job["max_requests"]
        scheduler.max_num_batched_tokens = min(STEP_TOKENS, job["max_model_len"])
        self._pipeline = genai.ContinuousBatchingPipeline(job["model"], scheduler, "CPU", properties)
        self._under_way: dict[int, tuple[Any, int]] = {}
        self.prompts: dict[int, int] = {}
        told = ", ".join(f"{name}={value}" for name, value in properties.items())
        self.settings = f"continuous batching, {told}, {scheduler.max_num_batched_tokens} tokens a step at most"

    def submit(self, number: int, ids: list[int], max_tokens: int, *, text: str | None, image: bytes | None) -> None:
        """Take a request; one with an image is refused."""
        import numpy as np
        import openvino as ov
        import openvino_genai as genai

        if image is not None:
            raise ValueError("this peer reads text only")
        config = genai.GenerationConfig()
        config.max_new_tokens = max_tokens
        config.ignore_eos = True
        config.do_sample = False
        handle = self._pipeline.add_request(number, ov.Tensor(np.array([ids], dtype=np.int64)), config)
        self._under_way[number] = (handle, max_tokens)
        self.prompts[number] = len(ids)

    def step(self) -> list[tuple[int, int, float, bool]]:
        """One step: request, token, time, whether it is the last."""
        self._pipeline.step()
        at = time.perf_counter()
        found = []
        for number, (handle, left) in list(self._under_way.items()):
            while left and handle.can_read():
                for token in handle.read()[0].generated_ids:
                    left -= 1
                    found.append((number, token, at, left == 0))
            if left:
                self._under_way[number] = (handle, left)
            else:
                del self._under_way[number]
        return found

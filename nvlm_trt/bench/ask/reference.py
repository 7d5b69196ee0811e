"""Ask the torch reference: the released model's arithmetic step by step, as Hugging Face's `generate` runs it.

One request at a time, as there is no batching: further callers wait, and their wait counts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import torch

from nvlm_trt.bench.ask.placed import open_reference
from nvlm_trt.bench.record import Device, RequestRecord
from nvlm_trt.bench.workload import Question
from nvlm_trt.model.image import read_image
from nvlm_trt.model.prompt import build_prompt
from nvlm_trt.model.tiling import tile_image
from nvlm_trt.model.tokenizer import NvlmTokenizer
from nvlm_trt.recipe import BuildRecipe


class TokenClock(Collection[int]):
    """No stop id at all, but it notes when it is asked about one: once for every token of an answer."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __contains__(self, token: object) -> bool:
        self.times.append(time.perf_counter())
        return False

    def __iter__(self) -> Iterator[int]:
        return iter(())

    def __len__(self) -> int:
        return 0


class ReferenceAsker:
    """Both parts of a checkpoint in torch, loaded when this is made.

    Args:
        checkpoint: An NVLM-D directory.
        dtype: "fp32" or "bf16", of weights and arithmetic.
        device: Where they are.
        recipe: How images are cut and how many threads compute.
        max_tokens: Tokens of an answer whose question says nothing.
    """

    def __init__(self, checkpoint: Path, dtype: str, device: Device, recipe: BuildRecipe, max_tokens: int) -> None:
        if recipe.cpu_threads:
            torch.set_num_threads(recipe.cpu_threads)
        self._vision, self._decoder = open_reference(checkpoint, dtype, device)
        self._config = self._vision.config
        self._tokenizer = NvlmTokenizer.load(checkpoint)
        self._recipe = recipe
        self._limits = recipe.image_limits.limits()
        self._max_tokens = max_tokens
        self._lock = threading.Lock()

    def ask(self, question: Question) -> RequestRecord:
        """Ask and wait for the whole answer."""
        started = time.perf_counter()
        with self._lock:
            return self._answer(question, started)

    def _answer(self, question: Question, started: float) -> RequestRecord:
        begun = time.perf_counter()
        config = self._config
        tiles = [
            tile_image(
                read_image(data, self._limits, exif_orientation=self._recipe.exif_orientation),
                max_tiles=self._recipe.max_tiles,
                tile_size=config.tile_size,
                use_thumbnail=config.use_thumbnail,
            )
            for data in question.images
        ]
        counts = [len(cut) for cut in tiles]
        prompt = build_prompt(
            self._tokenizer, config.tokens_per_tile, question.text, tiles=counts, history=question.history
        )
        cut_at = time.perf_counter()
        table = self._vision(np.concatenate(tiles)).reshape(-1, config.decoder.hidden_size) if tiles else None
        if table is not None and table.is_cuda:
            torch.cuda.synchronize()  # a GPU is only told what to do
        seen_at = time.perf_counter()
        clock = TokenClock()
        ids = prompt.decoder_ids(config.decoder.vocab_size)
        length = question.max_tokens or self._max_tokens
        answer = self._decoder.greedy(ids, table, max_tokens=length, stop_ids=clock)
        return RequestRecord(
            ttft_s=clock.times[0] - started,
            total_s=clock.times[-1] - started,
            prompt_tokens=len(ids),
            output_tokens=len(answer),
            images=len(question.images),
            tiles=sum(counts),
            preprocess_s=cut_at - begun,
            vision_s=seen_at - cut_at,
            arrivals_s=tuple(each - started for each in clock.times),
        )

    def close(self) -> None:
        """Nothing is left to end."""

"""Ask an engine directory of the cpu target in this process."""

from __future__ import annotations

import time
from pathlib import Path

from nvlm_trt.bench.record import RequestRecord
from nvlm_trt.bench.workload import Question
from nvlm_trt.decoder.request import SamplingParams
from nvlm_trt.local import LocalEngine


class LocalAsker:
    """The engines of a directory, loaded when this is made.

    Args:
        engine_dir: ``engines/<recipe>``.
        max_tokens: Tokens of an answer whose question says nothing; the end of turn is forbidden before.
    """

    def __init__(self, engine_dir: Path, max_tokens: int) -> None:
        self._engine = LocalEngine(engine_dir)
        self._max_tokens = max_tokens

    def ask(self, question: Question) -> RequestRecord:
        """Ask and wait for the whole answer."""
        length = question.max_tokens or self._max_tokens
        sampling = SamplingParams(length, min_tokens=length)
        started = time.perf_counter()
        stream = self._engine.stream(question.text, sampling, images=question.images, history=question.history)
        result = stream.result
        timings = result.timings
        return RequestRecord(
            ttft_s=timings.ttft_s,
            total_s=timings.ttft_s + timings.decode_s,
            prompt_tokens=len(result.input_ids),
            output_tokens=len(result.output_ids),
            images=len(question.images),
            tiles=sum(result.tiles),
            preprocess_s=timings.preprocess_s,
            vision_s=timings.vision_s,
            arrivals_s=tuple(each - started for each in stream.arrivals),
        )

    def close(self) -> None:
        """End the engine."""
        self._engine.close()

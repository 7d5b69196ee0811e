"""Ask an engine directory of the cpu target in this process."""

from __future__ import annotations

from pathlib import Path

from nvlm_trt.bench.record import RequestRecord
from nvlm_trt.bench.workload import Question
from nvlm_trt.decoder.request import SamplingParams
from nvlm_trt.local import LocalEngine


class LocalAsker:
    """The engines of a directory, loaded when this is made.

    Args:
        engine_dir: ``engines/<recipe>``.
        max_tokens: Tokens of every answer; the end of turn is forbidden before.
    """

    def __init__(self, engine_dir: Path, max_tokens: int) -> None:
        self._engine = LocalEngine(engine_dir)
        self._sampling = SamplingParams(max_tokens, min_tokens=max_tokens)

    def ask(self, question: Question) -> RequestRecord:
        """Ask and wait for the whole answer."""
        result = self._engine.generate(question.text, self._sampling, images=question.images)
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
        )

    def close(self) -> None:
        """End the engine."""
        self._engine.close()

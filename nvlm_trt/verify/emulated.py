"""What a whole decoder of the gpu target answers, emulated: all of its ranks in torch, in their precision."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nvlm_trt.decoder.precision import UNQUANTIZED, Precision
from nvlm_trt.emulation.decoder import emulated_decoder
from nvlm_trt.emulation.vision import VisionArithmetic
from nvlm_trt.engine_files import DECODER_CALIBRATION, DECODER_CHECKPOINT, VISION_CALIBRATION
from nvlm_trt.eval.reference import ReferenceAnswerer
from nvlm_trt.eval.tasks import Sample
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.decoder import DecoderReference
from nvlm_trt.progress import Log
from nvlm_trt.recipe import BuildRecipe
from nvlm_trt.verify.answers import Tables, judge_answers
from nvlm_trt.verify.fake_quant import Roundings
from nvlm_trt.verify.golden import Golden, make_goldens
from nvlm_trt.verify.layer_errors import LayerCost
from nvlm_trt.verify.sensitivity import layer_costs
from nvlm_trt.verify.shown import Shown, right_tables
from nvlm_trt.verify.subjects import RanksSubject, ReferenceSubject
from nvlm_trt.verify.task import answered, task_figures, task_options

TIMEOUT = 3600.0
"""Seconds for the ranks in torch."""

Figures = dict[str, float]


class EmulatedAnswers:
    """An engine directory of the gpu target and the reference, both in memory as a whole.

    Args:
        checkpoint: The source.
        engine: The engine directory.
        recipe: As built.
        precision: Of the decoder.
        vision: The vision encoder in its precision.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        engine: Path,
        recipe: BuildRecipe,
        precision: Precision,
        vision: VisionArithmetic,
    ) -> None:
        self._checkpoint, self._engine, self._recipe = checkpoint, engine, recipe
        self._precision, self._vision = precision, vision
        self._reference = DecoderReference(checkpoint)

    def goldens(self, shown: Shown, tables: Sequence[Tables | None]) -> list[Golden]:
        """The reference's answers, given its own tables."""
        return make_goldens(self._reference, shown.everything, right_tables(tables), self._recipe.verify_tokens)

    def judge(
        self, asked: Asked, samples: Sequence[Sample], log: Log, work: Path | None
    ) -> tuple[dict[str, Figures], list[str]]:
        """Figures of the parts `logits` and `canary`, of `task` where there are samples, and remarks."""
        log("answers: prompts with images, and with other images in their place, emulated")
        questions = asked.shown.questions(asked.goldens, asked.stop_id, asked.by_reference, asked.by_subject)
        subject = RanksSubject(self._engine / DECODER_CHECKPOINT, TIMEOUT)
        figures, remarks = judge_answers(subject, ReferenceSubject(self._reference), questions)
        if samples:
            log(f"task: {len(samples)} samples, each answered by the emulation and by the reference")
            figures["task"], more = self._judge_task(samples, log, work)
            remarks += more
        return figures, remarks

    def costs(self, asked: Asked) -> list[LayerCost]:
        """What each layer costs when it is quantised alone."""
        return layer_costs(
            self._checkpoint,
            self._reference,
            asked.goldens,
            asked.stop_id,
            vision=self._recipe.vision_precision,
            calibration=self._engine / VISION_CALIBRATION,
            roundings=None if self._precision.quantization == UNQUANTIZED else Roundings.of(self._precision),
        )

    def _judge_task(self, samples: Sequence[Sample], log: Log, work: Path | None) -> tuple[Figures, list[str]]:
        """Figures of the part `task`, and remarks.

        The decoder that answers is converted once more, to one rank: its arithmetic is that of all ranks together,
        which `layers` and `ranks` judge on the files themselves.
        """
        source, options = self._checkpoint.path, task_options(self._recipe)
        with tempfile.TemporaryDirectory(prefix="nvlm-trt-emulated-") as folder:
            decoder = emulated_decoder(
                self._checkpoint,
                self._precision,
                Path(folder),
                calibration=self._engine / DECODER_CALIBRATION,
                column_blocks=self._recipe.tp,
            )
            emulation = ReferenceAnswerer(
                source, options=options, recipe=self._recipe, vision=self._vision.encoder(), decoder=decoder
            )
            ours = answered("emulation", emulation, samples, log, work)
        reference = ReferenceAnswerer(source, options=options, recipe=self._recipe, decoder=self._reference)
        return task_figures(ours, answered("reference", reference, samples, log, work))


@dataclass(frozen=True, slots=True)
class Asked:
    """Requests with the tables and the answers that they were given.

    Attributes:
        shown: The requests.
        by_reference: The reference's tables.
        by_subject: Those of the precision.
        goldens: The reference's answers.
        stop_id: What ends an answer.
    """

    shown: Shown
    by_reference: Sequence[Tables | None]
    by_subject: Sequence[Tables | None]
    goldens: Sequence[Golden]
    stop_id: int

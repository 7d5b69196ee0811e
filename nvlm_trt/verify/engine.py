"""Stage `verify`: one engine directory of the cpu target against the torch reference, gate by gate."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from nvlm_trt.decoder.engine_config import DecoderEngineConfig
from nvlm_trt.decoder.request import SamplingParams
from nvlm_trt.decoder.session_cpu import DecoderSession
from nvlm_trt.errors import EngineError
from nvlm_trt.local import LocalEngine
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.decoder import DecoderReference
from nvlm_trt.model.reference.vision import VisionReference
from nvlm_trt.model.tokenizer import NvlmTokenizer
from nvlm_trt.recipe import BuildRecipe
from nvlm_trt.verify.cases import Case, Limits, make_cases, prompt_faults
from nvlm_trt.verify.gates import (
    ANSWER_GATES,
    DECODER_GATES,
    PROMPT_GATES,
    SHARDED_GATES,
    VISION_GATES,
    Check,
    judge,
)
from nvlm_trt.verify.golden import (
    Floats,
    Step,
    answer_figures,
    closeness,
    decoder_figures,
    forced_logits,
    reference_logits,
    with_excess,
    worst,
)
from nvlm_trt.verify.report import VerifyReport
from nvlm_trt.verify.sharded import verify_sharded
from nvlm_trt.verify.yardstick import reduced_decoder, reduced_vision
from nvlm_trt.vision.runner import VisionRunner

Figures = dict[str, float]
Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Golden:
    """A case with the reference's own results: its prompt table [rows, hidden] (None for text) and greedy answer."""

    case: Case
    ids: npt.NDArray[np.int32]
    table: Floats | None
    steps: tuple[Step, ...]

    @property
    def answer(self) -> list[int]:
        return [step.token for step in self.steps]


def verify_engine(
    engine: Path, checkpoint_dir: Path, recipe: BuildRecipe, *, log: Log = lambda _line: None
) -> VerifyReport:
    """Compare tokenizer, vision, decoder, whole engine and converted ranks with the reference.

    Args:
        engine: The engine directory, all of whose parts are built.
        checkpoint_dir: The checkpoint that it was built from.
        recipe: The recipe as built: precisions, limits and the amount of work.
        log: Told what is being compared.

    Raises:
        EngineError: a part is missing, or the engine is too small for the shortest question.
        CheckpointError: the checkpoint cannot be read.
        FaultError: a rank of the sharded run failed.
    """
    if recipe.target != "cpu":
        raise EngineError("only engines of the cpu target can be verified here", seen=recipe.target)
    checkpoint = Checkpoint.open(checkpoint_dir)
    tokenizer = NvlmTokenizer.load(engine / "tokenizer")
    decoder = DecoderEngineConfig.read(engine / "decoder" / "cpu")
    cases = _cases(checkpoint, tokenizer, decoder, recipe)
    faults = prompt_faults(checkpoint.config, tokenizer, cases)
    figures: dict[str, Figures] = {"prompt": {"faults": len(faults), "cases": len(cases)}}

    log("vision: tiles through the engine and the reference")
    tables, figures["vision"] = _compare_vision(engine, checkpoint, recipe, cases)
    log("decoder: logits after the same tokens")
    goldens = _goldens(checkpoint, cases, tables, recipe.verify_tokens)
    figures["decoder"] = _compare_decoder(engine, checkpoint, recipe, decoder, goldens)
    log("answer: the whole engine")
    figures["answer"] = _compare_answers(engine, goldens, tokenizer.eos_id)
    log(f"sharded: {recipe.tp * recipe.pp} ranks over gloo")
    figures["sharded"] = _compare_sharded(engine, checkpoint, goldens)
    precisions = {"vision": recipe.vision_precision, "decoder": recipe.decoder_precision}
    return VerifyReport(precisions, tuple(_judge_all(figures, recipe)), figures, tuple(faults))


def _judge_all(figures: dict[str, Figures], recipe: BuildRecipe) -> list[Check]:
    exact = recipe.vision_precision == recipe.decoder_precision == "fp32"
    gates = {
        "prompt": PROMPT_GATES,
        "vision": VISION_GATES[recipe.vision_precision] if figures["vision"] else (),
        "decoder": DECODER_GATES[recipe.decoder_precision],
        "answer": ANSWER_GATES[exact],
        "sharded": SHARDED_GATES,
    }
    return [check for part, wanted in gates.items() for check in judge(part, wanted, figures[part])]


def _cases(
    checkpoint: Checkpoint, tokenizer: NvlmTokenizer, decoder: DecoderEngineConfig, recipe: BuildRecipe
) -> list[Case]:
    room = decoder.max_seq_len - recipe.verify_tokens
    limits = Limits(min(recipe.max_input_len, room), recipe.max_images, recipe.max_tiles)
    cases = make_cases(checkpoint.config, tokenizer, limits, recipe.verify_prompts)
    if not cases:
        raise EngineError("the engine is too short for any question", seen=f"{limits.input_len} tokens")
    return cases


def _compare_vision(
    engine: Path, checkpoint: Checkpoint, recipe: BuildRecipe, cases: Sequence[Case]
) -> tuple[list[Floats | None], Figures]:
    """The reference's prompt table of every case (None without a tile) and the figures of the engine's."""
    runner = VisionRunner(engine / "vision" / "cpu", threads=recipe.cpu_threads)
    reference, reduced = VisionReference(checkpoint), reduced_vision(checkpoint, recipe.vision_precision)
    tables: list[Floats | None] = []
    figures, yardsticks = [], []
    for case in cases:
        if not len(case.tiles):
            tables.append(None)
            continue
        expected = _encode(reference, case)
        figures.append(closeness(runner.encode(case.tiles), expected))
        if reduced is not None:
            yardsticks.append(closeness(_encode(reduced, case), expected))
        tables.append(expected.reshape(-1, expected.shape[-1]))
    return tables, with_excess(figures, yardsticks) if figures else {}


def _encode(reference: VisionReference, case: Case) -> Floats:
    """float32 [tiles, tokens, hidden], tile by tile: the memory is that of one."""
    rows = [reference(tile[np.newaxis]).to(torch.float32) for tile in case.tiles]
    encoded: Floats = torch.cat(rows).numpy()
    return encoded


def _goldens(
    checkpoint: Checkpoint, cases: Sequence[Case], tables: Sequence[Floats | None], tokens: int
) -> list[_Golden]:
    reference = DecoderReference(checkpoint)
    goldens = []
    for case, table in zip(cases, tables, strict=True):
        ids = case.prompt.decoder_ids(checkpoint.config.decoder.vocab_size)
        steps = reference.greedy_steps(ids, table, max_tokens=tokens)
        goldens.append(_Golden(case, ids, table, tuple(Step(token, logits.numpy()) for token, logits in steps)))
    return goldens


def _compare_decoder(
    engine: Path,
    checkpoint: Checkpoint,
    recipe: BuildRecipe,
    config: DecoderEngineConfig,
    goldens: Sequence[_Golden],
) -> Figures:
    longest = max(len(golden.ids) + len(golden.steps) for golden in goldens)
    num_blocks = -(-longest // config.block_size)
    session = DecoderSession(engine / "decoder" / "cpu", config, num_blocks, recipe.cpu_threads)
    reduced = reduced_decoder(checkpoint, recipe.decoder_precision)
    figures, yardsticks = [], []
    for golden in goldens:
        logits = list(forced_logits(session, golden.ids, golden.table, golden.answer, config.block_size))
        figures.append(decoder_figures(golden.steps, logits))
        if reduced is not None:
            rounded = reference_logits(reduced, golden.ids, golden.table, golden.answer)
            yardsticks.append(decoder_figures(golden.steps, list(rounded)))
    return with_excess(figures, yardsticks)


def _compare_answers(engine: Path, goldens: Sequence[_Golden], eos_id: int) -> Figures:
    """Every question asked as a user asks it: encoded images in, tokens out."""
    figures = []
    with LocalEngine(engine) as local:
        for golden in goldens:
            images = []
            for picture in golden.case.pictures:
                encoded = io.BytesIO()
                picture.save(encoded, "PNG")
                images.append(encoded.getvalue())
            answer = local.generate(golden.case.question, SamplingParams(len(golden.steps)), images=images)
            until_stop = next((i for i, token in enumerate(golden.answer) if token == eos_id), len(golden.steps))
            same = answer.input_ids == golden.case.prompt.input_ids
            differing = answer_figures(golden.steps[:until_stop], answer.output_ids)
            figures.append({**differing, "prompts_differing": 0.0 if same else 1.0})
    return worst(figures)


def _compare_sharded(engine: Path, checkpoint: Checkpoint, goldens: Sequence[_Golden]) -> Figures:
    prompts = [(golden.ids, golden.table) for golden in goldens]
    report = verify_sharded(checkpoint, engine / "decoder" / "checkpoint", prompts=prompts)
    return {
        "ranks": report.tp * report.pp,
        "max_rel_error": report.max_rel_error,
        "argmax_agreement": report.argmax_agreement,
    }

"""Stage `verify`: one engine directory of the cpu target against the torch reference, gate by gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from nvlm_trt.decoder.engine import DecoderEngine
from nvlm_trt.decoder.engine_config import DecoderEngineConfig
from nvlm_trt.decoder.request import DecodeRequest, SamplingParams
from nvlm_trt.decoder.session_cpu import DecoderSession
from nvlm_trt.errors import EngineError
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
    worst,
)
from nvlm_trt.verify.report import VerifyReport
from nvlm_trt.verify.sharded import verify_sharded
from nvlm_trt.vision.runner import VisionRunner

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class _Golden:
    """A case with the reference's own results: its prompt table [rows, hidden] (None for text) and greedy answer."""

    case: Case
    ids: Ints
    table: Floats | None
    steps: tuple[Step, ...]


def verify_engine(
    engine: Path, checkpoint_dir: Path, recipe: BuildRecipe, *, log: Callable[[str], None] = lambda _line: None
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
    figures: dict[str, dict[str, float]] = {"prompt": {"faults": len(faults), "cases": len(cases)}}

    log("vision: tiles through the engine and the reference")
    tables, figures["vision"] = _compare_vision(engine, checkpoint, recipe, cases)
    log("decoder: the reference's answers")
    goldens = _goldens(checkpoint, cases, tables, recipe.verify_tokens)
    log("decoder: logits after the same tokens")
    figures["decoder"] = _compare_decoder(engine, decoder, goldens, recipe.cpu_threads)
    log("answer: the whole engine")
    figures["answer"] = _compare_answers(engine, goldens, [table for table, _ in tables], recipe)
    log(f"sharded: {recipe.tp * recipe.pp} ranks over gloo")
    figures["sharded"] = _compare_sharded(engine, checkpoint, goldens)
    precisions = {"vision": recipe.vision_precision, "decoder": recipe.decoder_precision}
    return VerifyReport(precisions, tuple(_judge_all(figures, recipe)), figures, tuple(faults))


def _judge_all(figures: dict[str, dict[str, float]], recipe: BuildRecipe) -> list[Check]:
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
) -> tuple[list[tuple[Floats | None, Floats | None]], dict[str, float]]:
    """Prompt tables of every case (the engine's, the reference's) and their figures; none without a tile."""
    runner = VisionRunner(engine / "vision" / "cpu", threads=recipe.cpu_threads)
    reference = VisionReference(checkpoint)
    tables: list[tuple[Floats | None, Floats | None]] = []
    figures = []
    for case in cases:
        if not len(case.tiles):
            tables.append((None, None))
            continue
        ours = runner.encode(case.tiles)
        theirs = torch.cat([reference(tile[np.newaxis]) for tile in case.tiles]).numpy()
        figures.append(closeness(ours, theirs))
        width = ours.shape[-1]
        tables.append((ours.reshape(-1, width), theirs.reshape(-1, width)))
    return tables, worst(figures) if figures else {}


def _goldens(
    checkpoint: Checkpoint, cases: Sequence[Case], tables: Sequence[tuple[Floats | None, Floats | None]], tokens: int
) -> list[_Golden]:
    reference = DecoderReference(checkpoint)
    goldens = []
    for case, (_, table) in zip(cases, tables, strict=True):
        ids = case.prompt.decoder_ids(checkpoint.config.decoder.vocab_size)
        steps = reference.greedy_steps(ids, table, max_tokens=tokens)
        goldens.append(_Golden(case, ids, table, tuple(Step(token, logits.numpy()) for token, logits in steps)))
    return goldens


def _compare_decoder(
    engine: Path, config: DecoderEngineConfig, goldens: Sequence[_Golden], threads: int
) -> dict[str, float]:
    longest = max(len(golden.ids) + len(golden.steps) for golden in goldens)
    num_blocks = -(-longest // config.block_size)
    session = DecoderSession(engine / "decoder" / "cpu", config, num_blocks, threads)
    figures = []
    for golden in goldens:
        answer = [step.token for step in golden.steps]
        logits = list(forced_logits(session, golden.ids, golden.table, answer, config.block_size))
        figures.append(decoder_figures(golden.steps, logits))
    return worst(figures)


def _compare_answers(
    engine: Path, goldens: Sequence[_Golden], tables: Sequence[Floats | None], recipe: BuildRecipe
) -> dict[str, float]:
    """All requests at a time, from the engine's own prompt tables."""
    longest = sum(len(golden.ids) + len(golden.steps) for golden in goldens)
    with DecoderEngine.load(
        engine / "decoder" / "cpu", threads=recipe.cpu_threads, cache_tokens=2 * longest
    ) as decoder:
        handles = [
            decoder.submit(DecodeRequest(str(number), golden.ids, table, SamplingParams(max_tokens=len(golden.steps))))
            for number, (golden, table) in enumerate(zip(goldens, tables, strict=True))
        ]
        answers = [handle.result()[0] for handle in handles]
    return worst([answer_figures(golden.steps, answer) for golden, answer in zip(goldens, answers, strict=True)])


def _compare_sharded(engine: Path, checkpoint: Checkpoint, goldens: Sequence[_Golden]) -> dict[str, float]:
    prompts = [(golden.ids, golden.table) for golden in goldens]
    report = verify_sharded(checkpoint, engine / "decoder" / "checkpoint", prompts=prompts)
    return {
        "ranks": report.tp * report.pp,
        "max_rel_error": report.max_rel_error,
        "argmax_agreement": report.argmax_agreement,
    }

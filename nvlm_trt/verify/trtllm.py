"""Stage `verify` of the gpu target: what of an engine directory can be judged without a GPU.

That is tokenizer and template, the headers of every rank of the TensorRT-LLM checkpoint, every one of its tensors
layer by layer, and, where memory allows, the ranks together in torch. What TensorRT made of it is not run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from nvlm_trt.decoder.convert import rank_file
from nvlm_trt.decoder.precision import precision_of
from nvlm_trt.decoder.trtllm_checkpoint import TrtllmCheckpoint
from nvlm_trt.emulation.vision import VisionArithmetic
from nvlm_trt.engine_files import DECODER_CHECKPOINT, TOKENIZER, VISION_CALIBRATION
from nvlm_trt.environment.memory import memory
from nvlm_trt.errors import EngineError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.config import NvlmConfig
from nvlm_trt.model.tensors import DECODER_PREFIX
from nvlm_trt.model.tokenizer import NvlmTokenizer
from nvlm_trt.progress import Log, Progress
from nvlm_trt.recipe import BuildRecipe
from nvlm_trt.verify import layerwise
from nvlm_trt.verify.answers import Tables
from nvlm_trt.verify.cases import Limits, prompt_faults
from nvlm_trt.verify.emulated import TIMEOUT, Asked, EmulatedAnswers
from nvlm_trt.verify.gates import (
    CACHE_GATES,
    COPY_GATES,
    EMULATED_VISION_GATES,
    LINEAR_GATES,
    PROMPT_GATES,
    QUANTISED_CACHE_GATES,
    RANKS_GATES,
    Check,
    Gate,
    answer_gates,
    failed_costs,
    judge_parts,
)
from nvlm_trt.verify.golden import closeness
from nvlm_trt.verify.golden import worst as worst_figures
from nvlm_trt.verify.layerwise import LayerwiseReport, compare_layers, worst
from nvlm_trt.verify.report import VerifyReport
from nvlm_trt.verify.sensitivity import with_advice
from nvlm_trt.verify.sharded import Prompt, precision_distance
from nvlm_trt.verify.shown import Shown, right_tables, show
from nvlm_trt.verify.task import task_samples

MAX_TOKENS = 256
"""Tokens of a prompt that the decoder is compared on: text, and most rows of a tile."""

MEMORY_SHARE = 0.25
"""Of the memory that is free, how much one copy of the whole decoder may take: up to three are held at a time."""

MOST_BYTES = 4 << 30
"""Of a whole decoder at most, a billion weights in float32: the ranks compute in float64, on the CPU."""

NEED_ALL_RANKS = ("ranks", "logits", "canary", "task")
"""Parts that are not judged where the ranks cannot be run together; the report says so."""

Figures = dict[str, float]


def verify_trtllm(
    engine: Path,
    checkpoint_dir: Path,
    recipe: BuildRecipe,
    *,
    log: Log = lambda _line: None,
    progress: Progress | None = None,
    work: Path | None = None,
    sensitivity: bool = False,
) -> VerifyReport:
    """Judge tokenizer, template, vision and converted decoder of an engine directory of the gpu target, without a GPU.

    What is said of vision and of answers is an emulation: the precision's rounding in torch. The report says so.

    Args:
        engine: The engine directory; its tokenizer and decoder checkpoint are built.
        checkpoint_dir: The checkpoint that it was built from.
        recipe: The recipe as built: precision, parallelism, limits, bounds and the amount of work.
        log: Told what is being compared.
        progress: Told bytes of the source's decoder that were compared layer by layer, and in all.
        work: Where the answers to the recipe's task are kept, for a run that is started again; None keeps none.
        sensitivity: Measure what each layer costs when it is quantised alone, also if no gate on that fails; it takes
            a decoder that can be run here as a whole.

    Raises:
        EngineError: a part is missing, the decoder is not what the recipe asks for, or no question, or no image, fits
            its limits.
        CheckpointError: a checkpoint cannot be read, or a rank's header is wrong; every fault is listed.
        UserError: the recipe's task cannot be read, or the reference cannot answer all of it.
        FaultError: a rank failed.
    """
    if recipe.target != "gpu":
        raise EngineError("only engines of the gpu target are verified here", seen=recipe.target)
    samples = task_samples(recipe)
    checkpoint = Checkpoint.open(checkpoint_dir)
    tokenizer = NvlmTokenizer.load(engine / TOKENIZER)
    log("decoder: headers of every rank")
    converted = TrtllmCheckpoint.open(engine / DECODER_CHECKPOINT)
    _check_contract(converted, recipe)
    reason = _too_large(checkpoint, converted)
    shown = show(checkpoint.config, tokenizer, _limits(checkpoint, recipe), recipe.verify_prompts, samples)
    if reason:
        shown = shown.cases_alone()
    faults = prompt_faults(checkpoint.config, tokenizer, shown.cases)
    figures: dict[str, Figures] = {"prompt": {"faults": len(faults), "cases": len(shown.cases)}}
    remarks = [*faults]

    log(f"vision: prompt tables by the reference, and emulated in {recipe.vision_precision}")
    expected = shown.tables(VisionArithmetic(checkpoint, "fp32").tables, control=False)
    vision = VisionArithmetic(checkpoint, recipe.vision_precision, engine / VISION_CALIBRATION)
    seen = shown.tables(vision.tables, control=False)
    figures["vision"] = _compare_vision(shown, expected, seen)
    log("decoder: every tensor of every rank, layer by layer")
    prompts = _prompts(shown, checkpoint.config.decoder.vocab_size, expected)
    layers = compare_layers(checkpoint, converted.path, prompts, progress=progress)
    figures["layers"] = layers.figures()
    remarks += _layer_remarks(layers)
    answers: EmulatedAnswers | None = None
    if reason:
        remarks.append(f"The ranks were not run together, so no answers were judged: {reason}.")
    else:
        log(f"decoder: {converted.config.world_size} ranks together over gloo")
        figures["ranks"] = precision_distance(checkpoint, converted.path, prompts=prompts, timeout=TIMEOUT).figures()
        answers = EmulatedAnswers(checkpoint, engine, recipe, converted.config.precision, vision)
        asked = Asked(shown, expected, seen, answers.goldens(shown, expected), tokenizer.eos_id)
        found, more = answers.judge(asked, samples, log, work)
        figures |= found
        remarks += more
    remarks.append("Engines were not run, that needs their GPU: figures of vision and answers are an emulation's.")
    precisions = {"vision": recipe.vision_precision, "decoder": recipe.decoder_precision}
    checks = tuple(_judge_all(figures, converted, layers, recipe, run_together=answers is not None))
    report = VerifyReport(precisions, checks, figures, tuple(remarks), tuple(layers.layer_errors()))
    if answers is None or not (sensitivity or failed_costs(checks)):
        return report
    log("sensitivity: each layer quantised alone")
    return with_advice(report, answers.costs(asked), recipe)


def _check_contract(converted: TrtllmCheckpoint, recipe: BuildRecipe) -> None:
    asked, config = precision_of(recipe), converted.config
    seen, expected = (
        f"tp {tp} x pp {pp}, {precision.dtype.name}, {precision.quantization.to_dict()}"
        for tp, pp, precision in ((config.tp, config.pp, config.precision), (recipe.tp, recipe.pp, asked))
    )
    if seen != expected:
        raise EngineError(
            "the decoder's checkpoint is not what the recipe asks for",
            seen=seen,
            expected=expected,
            fix="run the decoder-convert stage",
        )


def _limits(checkpoint: Checkpoint, recipe: BuildRecipe) -> Limits:
    """Of prompts that leave room for one token; more of an answer need not fit the engine to be emulated."""
    room = recipe.max_seq_len(checkpoint.config.decoder.max_position_embeddings) - 1
    return Limits.of(recipe, room)


def _compare_vision(shown: Shown, expected: Sequence[Tables | None], seen: Sequence[Tables | None]) -> Figures:
    """Figures of the prompt tables of the cases."""
    pairs = zip(expected[: len(shown.cases)], seen, strict=False)
    return worst_figures(
        [closeness(ours.right, theirs.right) for theirs, ours in pairs if theirs is not None and ours is not None]
    )


def _prompts(shown: Shown, vocab_size: int, expected: Sequence[Tables | None]) -> list[Prompt]:
    """The beginnings of the cases' prompts, with the reference's prompt tables."""
    ids = (case.prompt.decoder_ids(vocab_size)[:MAX_TOKENS] for case in shown.cases)
    return list(zip(ids, right_tables(expected), strict=False))


def peak_bytes(config: NvlmConfig, recipe: BuildRecipe) -> int:
    """What `verify_trtllm` holds at most, the process itself aside; all ranks are run only in memory that is free."""
    projector = config.projector_hidden * (config.projector_in + config.decoder.hidden_size)
    width, wide = config.vision.hidden_size, config.vision.intermediate_size
    vision = 4 * max(projector, 2 * width * (2 * width + wide))
    prompts = max(recipe.verify_prompts, 2)  # the first has no image: beside it alone one is shown that has
    return max(vision, layerwise.peak_bytes(config.decoder, prompts * MAX_TOKENS))


def _too_large(checkpoint: Checkpoint, converted: TrtllmCheckpoint) -> str | None:
    """Why the whole decoder cannot be run here, None if it can.

    One copy takes the larger of all rank files, which are mapped, and the reference in float32.
    """
    files = (converted.path / rank_file(index) for index in range(converted.config.world_size))
    decoder = (info for name, info in checkpoint.tensors.items() if name.startswith(DECODER_PREFIX))
    needed = max(sum(file.stat().st_size for file in files), 4 * sum(math.prod(info.shape) for info in decoder))
    free = memory().available
    if needed > MOST_BYTES:
        return f"they take {_gib(needed)} GiB, at most {_gib(MOST_BYTES)} GiB are run on a CPU"
    if needed > MEMORY_SHARE * free:
        return f"that takes {_gib(needed)} GiB, at most a quarter of the {_gib(free)} GiB of free memory may be taken"
    return None


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.1f}"


def _layer_remarks(layers: LayerwiseReport) -> list[str]:
    remarks = [f"{name} is no copy of the source's." for name in layers.differing]
    if layers.quantises_linears:
        furthest = worst(layers.linears)
        remarks.append(
            f"The linear layer furthest off is {furthest.name} of layer {furthest.layer}: "
            f"relative error {furthest.error:.2g}, independent rounding {furthest.yardstick:.2g}."
        )
    return remarks


def _judge_all(
    figures: Mapping[str, Figures],
    converted: TrtllmCheckpoint,
    layers: LayerwiseReport,
    recipe: BuildRecipe,
    *,
    run_together: bool,
) -> list[Check]:
    quantization = converted.config.quantization
    cache_alone = quantization.kv_cache_quant_algo is not None and quantization.quant_algo is None
    gates: dict[str, tuple[Gate, ...]] = {
        "prompt": PROMPT_GATES,
        "vision": EMULATED_VISION_GATES[recipe.vision_precision],
        "layers": COPY_GATES + LINEAR_GATES[quantization.quant_algo] + (CACHE_GATES if layers.caches else ()),
        "ranks": QUANTISED_CACHE_GATES if cache_alone else RANKS_GATES[recipe.decoder_precision],
        **answer_gates(recipe),
    }
    whole = () if recipe.gates.task else ("task",)
    return judge_parts(gates, figures, recipe.gates, without=whole if run_together else NEED_ALL_RANKS)

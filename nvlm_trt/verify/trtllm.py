"""Stage `verify` of the gpu target: what of an engine directory can be judged without a GPU.

That is tokenizer and template, the headers of every rank of the TensorRT-LLM checkpoint, every one of its tensors
layer by layer, and, where memory allows, the ranks together in torch. What TensorRT made of it is not run.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil
import torch

from nvlm_trt.decoder.convert import rank_file
from nvlm_trt.decoder.precision import decoder_precision
from nvlm_trt.decoder.trtllm_checkpoint import TrtllmCheckpoint
from nvlm_trt.errors import EngineError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.config import NvlmConfig
from nvlm_trt.model.reference.vision_stream import stream_vision
from nvlm_trt.model.tensors import DECODER_PREFIX
from nvlm_trt.model.tokenizer import NvlmTokenizer
from nvlm_trt.progress import Progress
from nvlm_trt.recipe import BuildRecipe
from nvlm_trt.verify import layerwise
from nvlm_trt.verify.cases import Case, Limits, make_cases, prompt_faults
from nvlm_trt.verify.gates import (
    CACHE_GATES,
    COPY_GATES,
    LINEAR_GATES,
    PROMPT_GATES,
    QUANTISED_CACHE_GATES,
    RANKS_GATES,
    Check,
    Gate,
    judge,
)
from nvlm_trt.verify.layerwise import LayerwiseReport, compare_layers, worst
from nvlm_trt.verify.report import VerifyReport
from nvlm_trt.verify.sharded import Prompt, precision_distance

MAX_TOKENS = 256
"""Tokens of a prompt that the decoder is compared on: text, and most rows of a tile."""

TIMEOUT = 3600.0
"""Seconds for the ranks in torch."""

MEMORY_SHARE = 0.5
"""Of the memory that is free, how much may be taken for the whole decoder."""

MOST_BYTES = 4 << 30
"""Of a whole decoder at most, a billion weights in float32: the ranks compute in float64, on the CPU."""

Figures = dict[str, float]
Log = Callable[[str], None]


def verify_trtllm(
    engine: Path,
    checkpoint_dir: Path,
    recipe: BuildRecipe,
    *,
    log: Log = lambda _line: None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Judge tokenizer, template and converted decoder of an engine directory of the gpu target; it needs no GPU.

    Args:
        engine: The engine directory; its tokenizer and decoder checkpoint are built.
        checkpoint_dir: The checkpoint that it was built from.
        recipe: The recipe as built: precision, parallelism, limits and the amount of work.
        log: Told what is being compared.
        progress: Told bytes of the source's decoder that were compared layer by layer, and in all.

    Raises:
        EngineError: a part is missing, the decoder is not what the recipe asks for, or no question fits its limits.
        CheckpointError: a checkpoint cannot be read, or a rank's header is wrong; every fault is listed.
        FaultError: a rank failed.
    """
    if recipe.target != "gpu":
        raise EngineError("only engines of the gpu target are verified here", seen=recipe.target)
    checkpoint = Checkpoint.open(checkpoint_dir)
    tokenizer = NvlmTokenizer.load(engine / "tokenizer")
    log("decoder: headers of every rank")
    converted = TrtllmCheckpoint.open(engine / "decoder" / "checkpoint")
    _check_contract(converted, recipe)
    cases = _cases(checkpoint, tokenizer, recipe)
    faults = prompt_faults(checkpoint.config, tokenizer, cases)
    figures: dict[str, Figures] = {"prompt": {"faults": len(faults), "cases": len(cases)}}
    remarks = [*faults]

    log("vision: prompt tables by the reference")
    prompts = _prompts(checkpoint, cases)
    log("decoder: every tensor of every rank, layer by layer")
    layers = compare_layers(checkpoint, converted.path, prompts, progress=progress)
    figures["layers"] = layers.figures()
    remarks += _layer_remarks(layers)
    if reason := _too_large(checkpoint, converted):
        remarks.append(f"The ranks were not run together: {reason}.")
    else:
        log(f"decoder: {converted.config.world_size} ranks together over gloo")
        figures["ranks"] = precision_distance(checkpoint, converted.path, prompts=prompts, timeout=TIMEOUT).figures()
    remarks.append("Engines were not run: that needs their GPU.")
    precisions = {"vision": recipe.vision_precision, "decoder": recipe.decoder_precision}
    return VerifyReport(precisions, tuple(_judge_all(figures, converted, layers, recipe)), figures, tuple(remarks))


def _check_contract(converted: TrtllmCheckpoint, recipe: BuildRecipe) -> None:
    fields = recipe.decoder_engine
    asked = decoder_precision(
        recipe.decoder_precision, kv_cache=fields.kv_cache_precision, group_size=fields.awq_group_size
    )
    config = converted.config
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


def _cases(checkpoint: Checkpoint, tokenizer: NvlmTokenizer, recipe: BuildRecipe) -> list[Case]:
    room = recipe.max_seq_len(checkpoint.config.decoder.max_position_embeddings) - 1
    limits = Limits(min(recipe.max_input_len, room), recipe.max_images, recipe.max_tiles)
    cases = make_cases(checkpoint.config, tokenizer, limits, recipe.verify_prompts)
    if not cases:
        raise EngineError("the engine is too short for any question", seen=f"{limits.input_len} tokens")
    return cases


def _prompts(checkpoint: Checkpoint, cases: Sequence[Case]) -> list[Prompt]:
    """The beginnings of the questions, with the reference's prompt tables."""
    config = checkpoint.config
    tables: list[torch.Tensor | None] = [None] * len(cases)
    tiles = np.concatenate([case.tiles for case in cases])
    if len(tiles):
        with tempfile.TemporaryDirectory(prefix="nvlm-trt-vision-") as folder:
            rows = stream_vision(checkpoint, tiles, work_dir=Path(folder), dtype=torch.float32)
            parts = torch.split(rows.clone(), [len(case.tiles) for case in cases])
        tables = [part.flatten(0, 1) if len(part) else None for part in parts]
    ids = (case.prompt.decoder_ids(config.decoder.vocab_size)[:MAX_TOKENS] for case in cases)
    return list(zip(ids, tables, strict=True))


def peak_bytes(config: NvlmConfig, recipe: BuildRecipe) -> int:
    """What `verify_trtllm` holds at most, the process itself aside; all ranks are run only in memory that is free."""
    projector = config.projector_hidden * (config.projector_in + config.decoder.hidden_size)
    width, wide = config.vision.hidden_size, config.vision.intermediate_size
    vision = 4 * max(projector, 2 * width * (2 * width + wide))
    return max(vision, layerwise.peak_bytes(config.decoder, recipe.verify_prompts * MAX_TOKENS))


def _too_large(checkpoint: Checkpoint, converted: TrtllmCheckpoint) -> str | None:
    """Why the whole decoder cannot be run here, None if it can.

    It takes the larger of all rank files, which are mapped, and the reference in float32: one follows the other.
    """
    files = (converted.path / rank_file(index) for index in range(converted.config.world_size))
    decoder = (info for name, info in checkpoint.tensors.items() if name.startswith(DECODER_PREFIX))
    needed = max(sum(file.stat().st_size for file in files), 4 * sum(math.prod(info.shape) for info in decoder))
    free = psutil.virtual_memory().available
    if needed > MOST_BYTES:
        return f"they take {_gib(needed)} GiB, at most {_gib(MOST_BYTES)} GiB are run on a CPU"
    if needed > MEMORY_SHARE * free:
        return f"that takes {_gib(needed)} GiB, at most half of the {_gib(free)} GiB of free memory may be taken"
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
    figures: dict[str, Figures], converted: TrtllmCheckpoint, layers: LayerwiseReport, recipe: BuildRecipe
) -> list[Check]:
    quantization = converted.config.quantization
    cache_alone = quantization.kv_cache_quant_algo is not None and quantization.quant_algo is None
    parts: list[tuple[str, tuple[Gate, ...]]] = [
        ("prompt", PROMPT_GATES),
        ("layers", COPY_GATES + LINEAR_GATES[quantization.quant_algo] + (CACHE_GATES if layers.caches else ())),
    ]
    if "ranks" in figures:
        parts.append(("ranks", QUANTISED_CACHE_GATES if cache_alone else RANKS_GATES[recipe.decoder_precision]))
    return [check for part, gates in parts for check in judge(part, gates, figures[part])]

"""Who is evaluated: an engine directory in this process, a running server, or a checkpoint in torch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from nvlm_trt import __version__
from nvlm_trt.decoder.precision import PRECISIONS, decoder_precision
from nvlm_trt.errors import EngineError, RequestError, UserError
from nvlm_trt.eval.answer import Answerer, AnswerOptions, EngineAnswerer, ServerAnswerer
from nvlm_trt.eval.emulate import emulated_decoder
from nvlm_trt.eval.reference import ReferenceAnswerer
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.pipeline.digest import DigestCache, combined, digest_json
from nvlm_trt.pipeline.fingerprint import identify
from nvlm_trt.pipeline.manifest import recorded_checkpoint
from nvlm_trt.pipeline.stages.calibrate import DECODER_CALIBRATION
from nvlm_trt.progress import Progress
from nvlm_trt.recipe import BuildRecipe, load_recipe

ENGINE_FILES = ("recipe.yaml", "config.json", "tokenizer", "vision/cpu", "decoder/cpu")
"""What the answers of an engine directory of the cpu target depend on."""

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Precisions that torch computes in itself; the others are emulated."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One who is evaluated.

    Attributes:
        title: In words.
        answerer: Answers.
        identity: Digest of who answers and how it is asked.
    """

    title: str
    answerer: Answerer
    identity: str


@contextmanager
def engine_subject(engine_dir: Path, options: AnswerOptions) -> Iterator[Subject]:
    """An engine directory of the cpu target in this process.

    Raises:
        EngineError: it is incomplete, or of the gpu target.
        RequestError: the options ask for more tiles than it was built for.
    """
    recipe = engine_recipe(engine_dir)
    if recipe.target != "cpu":
        raise EngineError(
            "an engine of the gpu target answers through its server",
            seen=engine_dir,
            fix="start it with nvlm-trt serve and give --url, or give --emulate",
        )
    if (options.max_tiles or 1) > recipe.max_tiles:
        raise RequestError("max_tiles is out of range", seen=options.max_tiles, expected=f"1 to {recipe.max_tiles}")
    from nvlm_trt.local import LocalEngine

    with LocalEngine(engine_dir) as engine:
        files = combined(DigestCache(engine_dir).digest_outputs(engine_dir, ENGINE_FILES))
        title = f"{recipe.name} (vision {recipe.vision_precision}, decoder {recipe.decoder_precision})"
        yield Subject(title, EngineAnswerer(engine, options), _identity(options, {"engine": files}))


@contextmanager
def server_subject(url: str, options: AnswerOptions, *, idle_timeout: float = 120.0) -> Iterator[Subject]:
    """A running server. It is known by its address alone: records say nothing of the engine behind it.

    Raises:
        UserError: the options ask for what a server does not do.
    """
    from nvlm_trt.client import NvlmClient

    with NvlmClient(url, idle_timeout=idle_timeout) as client:
        yield Subject(f"server {url}", ServerAnswerer(client, options), _identity(options, {"url": url}))


@contextmanager
def torch_subject(
    engine_dir: Path,
    precision: str,
    options: AnswerOptions,
    *,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Iterator[Subject]:
    """The checkpoint of an engine directory in torch, as it is or with its decoder in a precision of the gpu target.

    Vision is computed in float32 for fp32 and in bfloat16 for all others, whatever the recipe says.

    Args:
        engine_dir: A directory of either target; its recipe says how images are cut, and for an emulated precision
            what it has left of the stage decoder-calibrate is used.
        precision: "fp32", "bf16", or a decoder precision of the gpu target.
        options: How samples are asked.
        checkpoint: Where the checkpoint lies now, if it was moved.
        progress: Told bytes of the decoder that are converted, and in all.

    Raises:
        UserError: there is no such precision.
        RecipeError: the shapes do not allow it, or it needs a calibration that is not there.
        CheckpointError: the checkpoint or the calibration cannot be read.
    """
    known = [*TORCH_DTYPES, *(name for name in PRECISIONS if name not in TORCH_DTYPES)]
    if precision not in known:
        raise UserError("there is no such precision", seen=precision, expected=" | ".join(known))
    recipe = engine_recipe(engine_dir)
    source, cache = checkpoint or recorded_checkpoint(engine_dir), DigestCache(engine_dir)
    who: dict[str, object] = {"checkpoint": identify(source, cache).fingerprint, "precision": precision}
    who["recipe"] = recipe.model_dump(mode="json")
    if precision in TORCH_DTYPES:
        dtype = TORCH_DTYPES[precision]
        title = f"{recipe.name} (torch, {precision})"
        yield Subject(title, ReferenceAnswerer(source, dtype, options, recipe=recipe), _identity(options, who))
        return
    fields, calibration = recipe.decoder_engine, engine_dir / DECODER_CALIBRATION
    target = decoder_precision(precision, kv_cache=fields.kv_cache_precision, group_size=fields.awq_group_size)
    if target.needs_calibration and not calibration.is_dir():
        raise EngineError(
            f"{precision} needs a calibration",
            seen=f"no {DECODER_CALIBRATION} in {engine_dir}",
            fix="build a recipe of the gpu target of this precision with --until decoder-calibrate, and evaluate that",
        )
    if target.needs_calibration:
        who["calibration"] = combined(cache.digest_outputs(engine_dir, [DECODER_CALIBRATION]))
    with tempfile.TemporaryDirectory(prefix="nvlm-trt-emulate-") as work:
        decoder = emulated_decoder(
            Checkpoint.open(source),
            target,
            Path(work),
            calibration=calibration if target.needs_calibration else None,
            column_blocks=recipe.tp,
            progress=progress,
        )
        answerer = ReferenceAnswerer(source, torch.bfloat16, options, recipe=recipe, decoder=decoder)
        title = f"{recipe.name} (decoder {precision} emulated in torch, vision bf16 in torch)"
        yield Subject(title, answerer, _identity(options, who))


def engine_recipe(engine_dir: Path) -> BuildRecipe:
    """The recipe of an engine directory.

    Raises:
        EngineError: this is none.
    """
    if not (engine_dir / "recipe.yaml").is_file():
        raise EngineError("this is no engine directory", seen=engine_dir, expected="a directory made by nvlm-trt build")
    return load_recipe(engine_dir / "recipe.yaml")


def _identity(options: AnswerOptions, who: dict[str, object]) -> str:
    return digest_json({"who": who, "options": asdict(options), "version": __version__})

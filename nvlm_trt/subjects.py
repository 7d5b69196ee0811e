"""Who is evaluated: an engine directory in this process, a running server, or a checkpoint in torch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nvlm_trt import __version__
from nvlm_trt.decoder.precision import PRECISIONS, Precision, precision_of
from nvlm_trt.emulation.decoder import emulated_decoder
from nvlm_trt.emulation.vision import VisionArithmetic
from nvlm_trt.engine_files import DECODER_CALIBRATION, ENGINE_FILES, VISION_CALIBRATION, engine_recipe
from nvlm_trt.errors import EngineError, RequestError, UserError
from nvlm_trt.eval.answer import Answerer, AnswerOptions, EngineAnswerer, ServerAnswerer
from nvlm_trt.eval.reference import ReferenceAnswerer
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.pipeline.code_digest import CodeDigests
from nvlm_trt.pipeline.digest import DigestCache, combined, digest_json
from nvlm_trt.pipeline.fingerprint import identify, tool_versions
from nvlm_trt.pipeline.manifest import recorded_checkpoint
from nvlm_trt.pipeline.stages.calibrate import vision_quantization
from nvlm_trt.pipeline.stages.finish import VERIFY_TOOLS
from nvlm_trt.recipe import BuildRecipe

if TYPE_CHECKING:
    from nvlm_trt.client import NvlmClient

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Precisions that torch computes in itself; the others are emulated."""

CALIBRATED_BY = {VISION_CALIBRATION: "vision-calibrate", DECODER_CALIBRATION: "decoder-calibrate"}
"""Which stage leaves a calibration."""


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


def engine_subject(engine_dir: Path, options: AnswerOptions) -> AbstractContextManager[Subject]:
    """An engine directory of the cpu target in this process: checked at once, opened when it is entered.

    Raises:
        EngineError: it is of the gpu target, or, when it is entered, incomplete.
        RequestError: the options ask for more tiles or longer answers than it was built for.
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
    if (options.max_tokens or 1) > (most := recipe.max_output_len):
        raise RequestError("max_tokens is out of range", seen=options.max_tokens, expected=f"1 to {most}")
    return _engine(engine_dir, recipe, options)


@contextmanager
def _engine(engine_dir: Path, recipe: BuildRecipe, options: AnswerOptions) -> Iterator[Subject]:
    from nvlm_trt.local import LocalEngine

    with LocalEngine(engine_dir) as engine:
        files = combined(DigestCache(engine_dir).digest_outputs(engine_dir, ENGINE_FILES))
        title = f"{recipe.name} (vision {recipe.vision_precision}, decoder {recipe.decoder_precision})"
        who = {"engine": files} | computed_with("nvlm_trt.eval.answer", "nvlm_trt.local")
        yield Subject(title, EngineAnswerer(engine, options), _identity(options, who))


def server_subject(url: str, options: AnswerOptions, *, idle_timeout: float = 120.0) -> AbstractContextManager[Subject]:
    """A running server: what is asked is checked at once, the server itself by the first question.

    It is known by its address alone: records say nothing of the engine behind it.

    Raises:
        UserError: this is no address, or the options ask for what a server does not do.
    """
    from nvlm_trt.client import NvlmClient

    client = NvlmClient(url, idle_timeout=idle_timeout)
    return _server(client, Subject(f"server {url}", ServerAnswerer(client, options), _identity(options, {"url": url})))


@contextmanager
def _server(client: NvlmClient, subject: Subject) -> Iterator[Subject]:
    with client:
        yield subject


def torch_subject(
    engine_dir: Path,
    precision: str,
    options: AnswerOptions,
    *,
    checkpoint: Path | None = None,
) -> AbstractContextManager[Subject]:
    """The checkpoint of an engine directory in torch, as it is or in the precisions of the gpu target.

    For fp32 and bf16 both parts are computed in that. For any other precision it is the decoder's, and vision has the
    recipe's `vision_precision`, in the arithmetic of `VisionArithmetic`. Checked at once, opened when it is entered.

    Args:
        engine_dir: A directory of either target; its recipe says how images are cut, and for an emulated precision
            what it has left of the stages vision-calibrate and decoder-calibrate is used.
        precision: "fp32", "bf16", or a decoder precision of the gpu target.
        options: How samples are asked.
        checkpoint: Where the checkpoint lies now, if it was moved.

    Raises:
        UserError: there is no such precision.
        EngineError: it needs a calibration that is not there.
        CheckpointError: the checkpoint cannot be read, or, when it is entered, a calibration.
        RecipeError: when it is entered, the shapes do not allow the precision.
    """
    known = [*TORCH_DTYPES, *(name for name in PRECISIONS if name not in TORCH_DTYPES)]
    if precision not in known:
        raise UserError("there is no such precision", seen=precision, expected=" | ".join(known))
    recipe = engine_recipe(engine_dir)
    source = Checkpoint.open(checkpoint or recorded_checkpoint(engine_dir))
    if precision in TORCH_DTYPES:
        return _reference(engine_dir, recipe, source, precision, options)
    for output in _measured(recipe, precision_of(recipe, precision)):
        if not (engine_dir / output).exists():
            raise EngineError(
                "these precisions need a calibration",
                seen=f"decoder {precision}, vision {recipe.vision_precision}, no {output} in {engine_dir}",
                fix=f"build a recipe of these precisions with --until {CALIBRATED_BY[output]}, and evaluate that",
            )
    return _emulation(engine_dir, recipe, source, precision, options)


@contextmanager
def _reference(
    engine_dir: Path, recipe: BuildRecipe, source: Checkpoint, precision: str, options: AnswerOptions
) -> Iterator[Subject]:
    answerer = ReferenceAnswerer(source.path, TORCH_DTYPES[precision], options, recipe=recipe)
    who = _who(engine_dir, recipe, source) | {"precision": precision}
    who |= computed_with("nvlm_trt.eval.reference")
    yield Subject(f"{recipe.name} (torch, {precision})", answerer, _identity(options, who))


@contextmanager
def _emulation(
    engine_dir: Path,
    recipe: BuildRecipe,
    source: Checkpoint,
    precision: str,
    options: AnswerOptions,
) -> Iterator[Subject]:
    target = precision_of(recipe, precision)
    measured = DigestCache(engine_dir).digest_outputs(engine_dir, _measured(recipe, target))
    who = _who(engine_dir, recipe, source) | {"precision": precision, "calibrations": combined(measured)}
    who["vision"] = recipe.vision_precision
    who |= computed_with("nvlm_trt.eval.reference", "nvlm_trt.emulation.decoder", "nvlm_trt.emulation.vision")
    with tempfile.TemporaryDirectory(prefix="nvlm-trt-emulate-") as work:
        decoder = emulated_decoder(
            source,
            target,
            Path(work),
            calibration=engine_dir / DECODER_CALIBRATION if target.needs_calibration else None,
            column_blocks=recipe.tp,
        )
        vision = VisionArithmetic(source, recipe.vision_precision, engine_dir / VISION_CALIBRATION)
        answerer = ReferenceAnswerer(
            source.path, options=options, recipe=recipe, vision=vision.encoder(), decoder=decoder
        )
        title = f"{recipe.name} (vision {recipe.vision_precision}, decoder {precision}, emulated in torch)"
        yield Subject(title, answerer, _identity(options, who))


def _measured(recipe: BuildRecipe, target: Precision) -> list[str]:
    """The calibrations that an emulation takes its scales from."""
    vision = [] if vision_quantization(recipe) is None else [VISION_CALIBRATION]
    return [*vision, DECODER_CALIBRATION] if target.needs_calibration else vision


def _who(engine_dir: Path, recipe: BuildRecipe, source: Checkpoint) -> dict[str, object]:
    """What answers in torch depend on in every precision."""
    fingerprint = identify(source.path, DigestCache(engine_dir)).fingerprint
    return {"checkpoint": fingerprint, "recipe": recipe.model_dump(mode="json")}


def computed_with(*modules: str) -> dict[str, object]:
    """What answers depend on besides what is asked and the files of engine and checkpoint: code and tools.

    Args:
        modules: Those of nvlm_trt that answer; all that they import counts.
    """
    return {"code": _code(modules), "tools": tool_versions(("openvino", *VERIFY_TOOLS))}


@cache
def _code(modules: tuple[str, ...]) -> str:
    return CodeDigests(None).digest(modules)


def _identity(options: AnswerOptions, who: dict[str, object]) -> str:
    return digest_json({"who": who, "options": asdict(options), "version": __version__})

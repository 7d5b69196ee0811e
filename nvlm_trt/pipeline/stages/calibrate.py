"""The stages that measure a model on samples, for scales of quantised activations."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from nvlm_trt.calibration.samples import SHIPPED_SAMPLES, Sample, read_samples
from nvlm_trt.engine_files import DECODER_CALIBRATION, VISION_CALIBRATION
from nvlm_trt.environment.gpus import find_gpus
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.pipeline.sources import Sources
from nvlm_trt.pipeline.stage import Estimate, Stage, StageContext
from nvlm_trt.pipeline.stages.common import BASE_BYTES, folder, source_of
from nvlm_trt.recipe import BuildRecipe

if TYPE_CHECKING:
    from nvlm_trt.calibration.prompts import CalibrationPrompt

QUANTISED_VISION = ("fp8", "int8")
VISION_RESULT_BYTES = 1 << 20
"""Room for what the vision encoder's measurement leaves: 20 kB of NVLM-D-72B, a number for each linear layer."""

RESULT_BYTES = 32 << 20
"""Room for what the decoder's measurement leaves: 17 MB of NVLM-D-72B, a factor for each input of a linear layer."""


def vision_quantization(recipe: BuildRecipe) -> str | None:
    """How the vision graph is quantised; None where it is not."""
    return recipe.vision_precision if recipe.vision_precision in QUANTISED_VISION else None


def needs_decoder_calibration(sources: Sources) -> bool:
    """Whether the decoder is converted with scales that have to be measured."""
    return sources.recipe.target == "gpu" and sources.precision.needs_calibration


def vision_calibrate(sources: Sources) -> Stage:
    """Measures the inputs of the vision encoder's linear layers on the tiles of the samples' images."""

    def run(context: StageContext) -> None:
        from nvlm_trt.calibration.device import calibration_device
        from nvlm_trt.calibration.prompts import PromptTiles
        from nvlm_trt.vision.quantize import calibrate_vision

        out = context.out / VISION_CALIBRATION
        out.parent.mkdir(parents=True)
        calibrate_vision(
            Checkpoint.open(sources.checkpoint.path),
            PromptTiles(_prompts(sources)),
            out,
            work_dir=context.work,
            device=calibration_device(sources.recipe.calibration.device),
            progress=context.progress,
        )

    def estimated() -> Estimate:
        from nvlm_trt.model.reference.vision_stream import peak_bytes, work_bytes

        config = sources.checkpoint.config
        work = work_bytes(config, _most_tiles(sources))
        return Estimate(VISION_RESULT_BYTES + work, BASE_BYTES + peak_bytes(config), work)

    return Stage(
        name="vision-calibrate",
        inputs=source_of(sources),
        outputs=(VISION_CALIBRATION, str(Path(VISION_CALIBRATION).with_suffix(".json"))),
        parts=_parts(sources.recipe),
        modules=("nvlm_trt.vision.quantize", "nvlm_trt.calibration.prompts"),
        tools=("torch", "numpy", "Pillow", "tokenizers"),
        run=run,
        estimated=estimated,
        reads_checkpoint=True,
        lacks=_lacks(sources.recipe),
    )


def decoder_calibrate(sources: Sources) -> Stage:
    """Measures the decoder on the samples, layer by layer; a killed run goes on after the last finished layer."""
    recipe, config = sources.recipe, sources.checkpoint.config
    precision = sources.precision

    def run(context: StageContext) -> None:
        from nvlm_trt.decoder.calibrate import CalibrationSettings, calibrate_decoder

        calibrate_decoder(
            Checkpoint.open(sources.checkpoint.path),
            _prompts(sources),
            folder(context, DECODER_CALIBRATION),
            context.work,
            precision=precision,
            settings=CalibrationSettings(device=recipe.calibration.device),
            progress=context.progress,
            log=context.log,
        )

    def estimated() -> Estimate:
        from nvlm_trt.decoder.calibrate import peak_bytes, work_bytes

        longest = recipe.calibration.max_tokens
        work = work_bytes(config, len(_samples(recipe)) * longest)
        return Estimate(RESULT_BYTES + work, peak_bytes(config, longest), work)

    return Stage(
        name="decoder-calibrate",
        inputs=source_of(sources),
        outputs=(DECODER_CALIBRATION,),
        parts={**_parts(recipe), "precision": precision.quantization.to_dict()},
        modules=("nvlm_trt.decoder.calibrate", "nvlm_trt.calibration.prompts"),
        tools=("torch", "numpy", "Pillow", "tokenizers"),
        run=run,
        estimated=estimated,
        reads_checkpoint=True,
        lacks=_lacks(sources.recipe),
    )


def _lacks(recipe: BuildRecipe) -> str | None:
    """Why this machine cannot calibrate as the recipe asks."""
    if recipe.calibration.device != "cuda" or find_gpus().gpus:
        return None
    return "it needs a GPU, as calibration.device is cuda: use auto or cpu"


def _samples(recipe: BuildRecipe) -> list[Sample]:
    """The samples: as many as the recipe asks for, or all where there are fewer."""
    named = recipe.calibration.samples
    return read_samples(SHIPPED_SAMPLES if named is None else Path(named), recipe.calibration.count)


def _most_tiles(sources: Sources) -> int:
    """Tiles of all samples at most: their images may have fewer."""
    recipe = sources.recipe
    room = -(-recipe.calibration.max_tokens // sources.checkpoint.config.tokens_per_tile)
    return sum(min(len(sample.images) * sources.tiles_per_image, room) for sample in _samples(recipe))


def _parts(recipe: BuildRecipe) -> dict[str, object]:
    """What the measurement depends on: the settings, and the bytes of every sample and image."""
    digest = sha256()
    for sample in _samples(recipe):
        digest.update(repr((sample.system, sample.history, sample.question, sample.answer)).encode())
        for image in sample.images:
            digest.update(sha256(image.read_bytes()).digest())
    settings = recipe.calibration.model_dump(mode="json", exclude={"samples"})
    images = recipe.model_dump(mode="json", include={"max_tiles", "image_limits", "exif_orientation"})
    return {"calibration": settings, "samples": digest.hexdigest(), **images}


def _prompts(sources: Sources) -> Sequence[CalibrationPrompt]:
    """The samples as prompts.

    The tokenizer is the checkpoint's own: read from where `inspect` puts it, it would make the measurement depend on
    the whole recipe.
    """
    from nvlm_trt.calibration.prompts import build_prompts
    from nvlm_trt.model.tokenizer import NvlmTokenizer

    recipe = sources.recipe
    return build_prompts(
        _samples(recipe),
        NvlmTokenizer.load(sources.checkpoint.path),
        sources.checkpoint.config,
        max_tokens=recipe.calibration.max_tokens,
        max_tiles=recipe.max_tiles,
        limits=recipe.image_limits.limits(),
        exif_orientation=recipe.exif_orientation,
    )

"""Where an engine directory keeps what stages leave in it and servers answer with; places are relative to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from nvlm_trt.errors import EngineError
from nvlm_trt.recipe import BuildRecipe, load_recipe

MANIFEST: Final = "manifest.json"
"""What was built from what (nvlm_trt.pipeline.manifest)."""

RECIPE: Final = "recipe.yaml"
"""What it was built with, every field written out."""

CONFIG: Final = "config.json"
"""That of the checkpoint."""

TOKENIZER: Final = "tokenizer"
"""The checkpoint's files of its tokenizer."""

SYNTHETIC_CHECKPOINT: Final = "checkpoint"
"""The checkpoint where a build has made it itself."""

VISION: Final = "vision"
VISION_CALIBRATION: Final = f"{VISION}/calibration.safetensors"
"""What the stage vision-calibrate leaves."""

VISION_GRAPH: Final = f"{VISION}/vision.onnx"
VISION_EXPORT: Final = (VISION_GRAPH, f"{VISION_GRAPH}.data", f"{VISION}/config.json")
"""What the stage vision-export leaves: the graph, its weights, and what they were made of."""

VISION_CPU: Final = f"{VISION}/cpu"
PLAN_NAME: Final = "model.plan"
"""What Triton's tensorrt backend looks for."""

VISION_PLAN: Final = f"{VISION}/{PLAN_NAME}"
"""The vision engine of the gpu target."""

DECODER_CALIBRATION: Final = "decoder/calibration"
"""What the stage decoder-calibrate leaves."""

DECODER_CHECKPOINT: Final = "decoder/checkpoint"
"""The TensorRT-LLM checkpoint, from which both targets compile."""

DECODER_CPU: Final = "decoder/cpu"
DECODER_ENGINE: Final = "decoder/engine"
"""The decoder's engines of the gpu target, one a rank. The C++ backend opens them relative to the working directory,
which `nvlm-trt serve` sets, so that an engine directory can be moved."""

VERIFY_REPORT: Final = "verify.json"
REPOSITORY: Final = "triton_repo"
"""The model repository."""

SERVED_FILES: Final[Mapping[str, tuple[str, ...]]] = {
    "cpu": (CONFIG, TOKENIZER, VISION_CPU, DECODER_CPU),
    "gpu": (CONFIG, TOKENIZER, VISION_PLAN, DECODER_ENGINE),
}
"""What serving reads by target, besides recipe and model repository."""

ENGINE_FILES: Final = (RECIPE, *SERVED_FILES["cpu"])
"""What the answers of an engine directory of the cpu target depend on."""


def engine_recipe(engine_dir: Path) -> BuildRecipe:
    """The recipe of an engine directory.

    Raises:
        EngineError: this is none.
        RecipeError: its recipe cannot be read.
    """
    if not (engine_dir / RECIPE).is_file():
        raise EngineError("this is no engine directory", seen=engine_dir, expected="a directory made by nvlm-trt build")
    return load_recipe(engine_dir / RECIPE)

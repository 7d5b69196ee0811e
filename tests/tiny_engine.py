"""An engine directory of the tiny checkpoint, as a build leaves it, made in seconds by the stages themselves."""

from __future__ import annotations

from pathlib import Path

import yaml

from nvlm_trt.decoder.build_cpu import build_decoder_cpu
from nvlm_trt.decoder.convert import convert_decoder
from nvlm_trt.decoder.precision import FP32
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.tokenizer import NvlmTokenizer
from nvlm_trt.recipe import BuildRecipe, parse_recipe
from nvlm_trt.serving.package import write_repository
from nvlm_trt.vision.build_cpu import build_vision_cpu
from nvlm_trt.vision.export import export_vision


def tiny_recipe() -> BuildRecipe:
    """Small limits, so that each of them can be met by a test."""
    return parse_recipe(
        {
            "name": "functional",
            "target": "cpu",
            "vision_precision": "fp32",
            "decoder_precision": "fp32",
            "max_batch_size": 8,
            "max_tiles": 6,
            "max_images": 3,
            "max_input_len": 512,
            "max_output_len": 400,
            "cpu_threads": 1,
        },
        "functional",
    )


def build_tiny_engine(tiny_checkpoint: Path, recipe: BuildRecipe, out: Path) -> None:
    """Build a checkpoint of tiles with 16 visual tokens into an empty place."""
    (out / "vision").mkdir(parents=True)
    checkpoint = Checkpoint.open(tiny_checkpoint)
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    (out / "config.json").write_bytes((tiny_checkpoint / "config.json").read_bytes())
    NvlmTokenizer.load(tiny_checkpoint)
    (out / "tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (out / "tokenizer" / name).write_bytes((tiny_checkpoint / name).read_bytes())
    export_vision(checkpoint, out / "vision", precision="fp32", output_dtype="fp32")
    build_vision_cpu(out / "vision" / "vision.onnx", out / "vision" / "cpu", precision="fp32")
    convert_decoder(checkpoint, out / "decoder" / "checkpoint", tp=1, pp=1, precision=FP32)
    build_decoder_cpu(
        out / "decoder" / "checkpoint",
        out / "decoder" / "cpu",
        precision="fp32",
        max_batch_size=recipe.max_batch_size,
        max_seq_len=recipe.max_input_len + recipe.max_output_len,
        max_prompt_table_rows=recipe.max_images * (recipe.max_tiles + 1) * 16,
    )
    write_repository(out, out / "triton_repo", recipe)

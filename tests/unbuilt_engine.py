"""An engine directory before its engines: what configurations and launches are made of."""

from __future__ import annotations

from pathlib import Path

from nvlm_trt.recipe import BuildRecipe, parse_recipe


def small_recipe() -> BuildRecipe:
    """A recipe of the cpu target with small limits."""
    return parse_recipe(
        {
            "name": "small",
            "target": "cpu",
            "vision_precision": "fp32",
            "decoder_precision": "fp32",
            "max_images": 2,
            "max_input_len": 300,
            "max_output_len": 50,
        },
        "small",
    )


def on_gpus(recipe: BuildRecipe) -> BuildRecipe:
    """The same for the gpu target with four ranks."""
    return parse_recipe(
        {
            **recipe.model_dump(exclude={"target", "vision_precision", "decoder_precision", "tp"}),
            "target": "gpu",
            "tp": 4,
        },
        "small",
    )


def unbuilt_engine(checkpoint: Path, folder: Path) -> Path:
    """An engine directory in `folder` without engines: config.json and tokenizer of `checkpoint`."""
    out = folder / "engine"
    (out / "tokenizer").mkdir(parents=True)
    (out / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (out / "tokenizer" / name).write_bytes((checkpoint / name).read_bytes())
    return out

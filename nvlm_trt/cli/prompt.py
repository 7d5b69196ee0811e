"""`nvlm-trt prompt`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def prompt(
    checkpoint: Annotated[Path, typer.Argument(help="An NVLM-D or engine directory.")],
    prompt: Annotated[str, typer.Option(help="The question; <image> marks the place of an image.")],
    image: Annotated[list[Path] | None, typer.Option(help="An image; give it again for further ones.")] = None,
    history: Annotated[Path | None, typer.Option(help="Earlier turns: a JSON list of [question, answer].")] = None,
    system: Annotated[str | None, typer.Option(help="System message in place of the release's own.")] = None,
    max_tiles: Annotated[int | None, typer.Option(help="Most tiles an image; default: the directory's.")] = None,
    exif: Annotated[
        bool | None,
        typer.Option("--exif/--no-exif", help="Read photographs upright; default: as the engine, without one upright."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the expanded prompt and its token ids, as the model sees them.

    Only config.json, the tokenizer and an engine's recipe, which says how it reads images, are read. Visual positions
    show the id of <|vision_pad|>.
    """
    from nvlm_trt.cli.conversation import open_image, read_history
    from nvlm_trt.cli.output import print_json
    from nvlm_trt.engine_files import RECIPE, TOKENIZER
    from nvlm_trt.model.config import load_config
    from nvlm_trt.model.image import ImageLimits
    from nvlm_trt.model.prompt import build_prompt
    from nvlm_trt.model.tiling import plan_grid
    from nvlm_trt.model.tokenizer import NvlmTokenizer
    from nvlm_trt.recipe import load_recipe

    config = load_config(checkpoint)
    inside = checkpoint / TOKENIZER
    tokenizer = NvlmTokenizer.load(inside if inside.is_dir() else checkpoint)
    limits, upright, most = ImageLimits(), True, config.max_tiles
    if (checkpoint / RECIPE).is_file():
        recipe = load_recipe(checkpoint / RECIPE)
        limits = recipe.image_limits.limits()
        upright, most = recipe.exif_orientation, recipe.max_tiles
    tiles = []
    for path in image or []:
        picture = open_image(path, limits, exif_orientation=upright if exif is None else exif)
        grid = plan_grid(
            picture.width,
            picture.height,
            max_tiles=most if max_tiles is None else max_tiles,
            tile_size=config.tile_size,
            use_thumbnail=config.use_thumbnail,
        )
        tiles.append(grid.num_tiles)
    built = build_prompt(
        tokenizer, config.tokens_per_tile, prompt, tiles=tiles, history=read_history(history), system=system
    )
    if json:
        facts = {"text": built.text, "input_ids": list(built.input_ids), "tiles": list(built.tiles)}
        print_json({**facts, "num_visual_tokens": built.num_visual_tokens})
        return
    typer.echo(_folded(built.text))
    typer.echo(f"\n{len(built.input_ids)} tokens, {built.num_visual_tokens} of them visual; tiles {list(built.tiles)}")
    typer.echo(" ".join(map(str, built.input_ids)))


def _folded(text: str) -> str:
    """The text with each run of visual tokens written once, with its length."""
    import re

    return re.sub(r"(?:<\|vision_pad\|>)+", lambda run: f"<|vision_pad|> x {len(run.group()) // 14}", text)

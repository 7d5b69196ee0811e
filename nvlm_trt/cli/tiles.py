"""`nvlm-trt tiles`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def tiles(
    image: Annotated[Path, typer.Argument(help="A photograph.")],
    max_tiles: Annotated[int, typer.Option(help="Most tiles of the grid, the thumbnail not counted; 1 to 12.")] = 6,
    tile_size: Annotated[int, typer.Option(help="Side of a tile in pixels, a multiple of 28.", min=28)] = 448,
    save: Annotated[Path | None, typer.Option(help="Write the tiles as PNG files into this folder.")] = None,
    exif: Annotated[bool, typer.Option("--exif/--no-exif", help="Read the photograph upright.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the tile grid of an image, the tags in front of the tiles, and the visual tokens."""
    from nvlm_trt.cli.conversation import open_image
    from nvlm_trt.cli.output import print_json
    from nvlm_trt.errors import UserError
    from nvlm_trt.model.tiling import cut_tiles, plan_grid

    if tile_size % 28:
        raise UserError("a tile is cut into patches of 14 pixels, shuffled 2 x 2", seen=tile_size, expected="n x 28")
    picture = open_image(image, exif_orientation=exif)
    grid = plan_grid(picture.width, picture.height, max_tiles=max_tiles, tile_size=tile_size)
    tokens = grid.num_tiles * (tile_size // 28) ** 2
    if save is not None:
        _save(save, cut_tiles(picture, grid, tile_size), grid.tags)
    if json:
        facts = {"columns": grid.columns, "rows": grid.rows, "tags": list(grid.tags), "tokens": tokens}
        boxes = grid.boxes(picture.width, picture.height)
        print_json({**facts, "size": [picture.width, picture.height], "boxes": boxes})
        return
    typer.echo(f"size      {picture.width} x {picture.height} pixels")
    typer.echo(f"grid      {grid.columns} columns x {grid.rows} rows{', and a thumbnail' if grid.thumbnail else ''}")
    typer.echo(f"tags      {' '.join(grid.tags)}")
    typer.echo(f"tokens    {tokens}")


def _save(folder: Path, pixels: object, tags: tuple[str, ...]) -> None:
    """Write one PNG a tile, named so that they sort in the order in which the model sees them."""
    import numpy as np
    from PIL import Image

    from nvlm_trt.errors import UserError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, (tile, tag) in enumerate(zip(np.asarray(pixels), tags, strict=True), start=1):
            Image.fromarray(tile).save(folder / f"{number:02d}_{tag.strip('<>')}.png")
    except OSError as error:
        raise UserError("the tiles cannot be saved", seen=f"{folder} ({error.strerror})") from None

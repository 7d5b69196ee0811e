"""`nvlm-trt inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nvlm_trt.cli.output import print_json, print_table


def inspect(
    checkpoint: Annotated[Path, typer.Argument(help="An NVLM-D directory.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show parts, parameters, bytes and dtypes of a checkpoint.

    Only headers are read. What is missing, extra or misshapen is listed in full, with exit code 2.
    """
    from nvlm_trt.model.checkpoint import Checkpoint
    from nvlm_trt.pipeline.inspection import describe, parts_of

    opened = Checkpoint.open(checkpoint)
    if json:
        print_json(describe(opened))
        return
    print_table(
        ("part", "tensors", "parameters", "bytes", "dtypes"),
        [
            (name, part.tensors, f"{part.parameters:,}", f"{part.bytes:,}", ", ".join(sorted(part.dtypes)))
            for name, part in parts_of(opened).items()
        ],
    )
    config = opened.config
    vision, decoder = config.vision, config.decoder
    typer.echo(f"\nvision    {vision.num_layers} layers, {vision.num_heads} heads and {opened.dummy_heads} dummy heads")
    typer.echo(f"tiles     {config.tile_size} x {config.tile_size} pixels, {config.tokens_per_tile} tokens each")
    typer.echo(
        f"decoder   {decoder.num_layers} layers, {decoder.num_heads} heads, {decoder.num_kv_heads} kv heads, "
        f"vocabulary {decoder.vocab_size}, up to {decoder.max_position_embeddings} tokens"
    )
    typer.echo("complete: nothing is missing, nothing is extra")

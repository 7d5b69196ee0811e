"""`nvlm-trt synth`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def synth(
    out: Annotated[Path, typer.Argument(help="The directory to make; nothing may be there.")],
    like: Annotated[str | None, typer.Option(help="Widths of a released model: 72b.")] = None,
    layers: Annotated[int | None, typer.Option(help="Layers of each part, with --like.")] = None,
    size: Annotated[str | None, typer.Option(help="Or: tiny (the default), small (0.9 B parameters, 2.3 GB).")] = None,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal bytes.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a random checkpoint in the real layout and dtypes, with a small tokenizer.

    Its answers mean nothing; every stage takes it as it takes the release.
    """
    from nvlm_trt.cli.output import print_json
    from nvlm_trt.errors import UserError
    from nvlm_trt.model.checkpoint import Checkpoint
    from nvlm_trt.model.synthetic import SIZES, like_72b, write_synthetic
    from nvlm_trt.pipeline.progress import reporter_for

    if like is not None and size is not None:
        raise UserError("--like and --size exclude each other")
    if like not in (None, "72b") or size not in (None, *SIZES):
        expected = "--like 72b, " + ", ".join(f"--size {name}" for name in SIZES)
        raise UserError("there is no such synthetic model", seen=like or size, expected=expected)
    if like is None and layers is not None:
        raise UserError("--layers goes with --like 72b")
    if like is not None and layers is None:
        raise UserError("--like 72b needs --layers", fix="4 layers are about 15 GB")
    spec = SIZES[size or "tiny"]() if layers is None else like_72b(layers)
    with reporter_for(silent=quiet or json).task("synth") as progress:
        write_synthetic(out, spec, seed=seed, progress=progress)
    checkpoint = Checkpoint.open(out)
    if json:
        print_json({"path": str(out), "tensors": len(checkpoint.tensors), "bytes": checkpoint.nbytes})
    else:
        typer.echo(f"{out}: {len(checkpoint.tensors)} tensors, {checkpoint.nbytes:,} bytes")

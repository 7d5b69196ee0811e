"""`nvlm-trt generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def generate(
    engine_dir: Annotated[Path, typer.Argument(help="An engine directory of the cpu target.")],
    prompt: Annotated[str, typer.Option(help="The question; <image> marks the place of an image.")],
    image: Annotated[list[Path] | None, typer.Option(help="An image; give it again for further ones.")] = None,
    history: Annotated[
        Path | None,
        typer.Option(help="Earlier turns: a JSON list of [question, answer], <image> written where an image stood."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message in place of the release's own.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of the answer at most.")] = 256,
    temperature: Annotated[float | None, typer.Option(help="Sample at this temperature; default: greedy.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample among the k best tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample among the best tokens of this probability.")] = None,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 discourages repetition.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Of the random numbers; default: another one each time.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends the answer.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer as it comes.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Answer a prompt with an engine directory in this process, without a server."""
    from dataclasses import asdict

    from nvlm_trt.cli.conversation import open_image, read_bytes, read_history
    from nvlm_trt.cli.output import print_json
    from nvlm_trt.decoder.request import SamplingParams
    from nvlm_trt.engine_files import engine_recipe
    from nvlm_trt.errors import UserError
    from nvlm_trt.local import LocalEngine

    if stream and json:
        raise UserError("--stream and --json exclude each other")
    sampling = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
    )
    recipe = engine_recipe(engine_dir)
    limits = recipe.image_limits.limits()
    for path in image or []:  # decoded again by the engine, which knows no names and takes seconds to load
        open_image(path, limits, exif_orientation=recipe.exif_orientation)
    images, turns = [read_bytes(path) for path in image or []], read_history(history)
    with LocalEngine(engine_dir) as engine:
        answer = engine.stream(prompt, sampling, images=images, history=turns, system=system)
        if stream:
            for delta in answer:
                typer.echo(delta, nl=False)
            typer.echo()
            return
        result = answer.result
    if not json:
        typer.echo(result.text)
        return
    print_json(
        {
            "text": result.text,
            "input_ids": list(result.input_ids),
            "output_ids": list(result.output_ids),
            "finish_reason": result.finish_reason,
            "tiles": list(result.tiles),
            "num_visual_tokens": result.num_visual_tokens,
            "timings": asdict(result.timings),
        }
    )

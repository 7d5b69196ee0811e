"""`nvlm-trt chat`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def chat(
    prompt: Annotated[str, typer.Option(help="The question; <image> marks the place of an image.")],
    url: Annotated[str, typer.Option(help="HOST:PORT of the server's gRPC.")] = "127.0.0.1:8001",
    image: Annotated[list[Path] | None, typer.Option(help="An image; give it again for further ones.")] = None,
    history: Annotated[
        Path | None,
        typer.Option(help="Earlier turns: a JSON list of [question, answer], <image> written where an image stood."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message in place of the release's own.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens of the answer at most.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Sample at this temperature; default: greedy.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample among the k best tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample among the best tokens of this probability.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1 discourages repetition.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the random numbers; default: another one each time.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends the answer.")] = None,
    max_tiles: Annotated[int | None, typer.Option(help="Tiles an image is cut into at most.")] = None,
    idle_timeout: Annotated[float, typer.Option(min=0.1, help="Seconds without a token that end the wait.")] = 120.0,
    json: Annotated[bool, typer.Option("--json", help="Print the whole answer as one JSON object.")] = False,
) -> None:
    """Ask a running server; the answer is printed as it comes."""
    from dataclasses import asdict

    from nvlm_trt.cli.conversation import read_bytes, read_history
    from nvlm_trt.cli.output import print_json
    from nvlm_trt.client import NvlmClient, Options

    options = Options(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop_words=tuple(stop or ()),
        max_tiles=max_tiles,
    )
    images, turns = [read_bytes(path) for path in image or []], read_history(history)
    client = NvlmClient(url, idle_timeout=idle_timeout)
    if json:
        print_json(asdict(client.generate(prompt, images=images, history=turns, system=system, options=options)))
        return
    with client.stream(prompt, images=images, history=turns, system=system, options=options) as answer:
        for piece in answer:
            typer.echo(piece, nl=False)
    typer.echo()

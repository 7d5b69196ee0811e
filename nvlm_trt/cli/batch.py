"""`nvlm-trt batch`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from nvlm_trt.client.batch import BatchPlan
    from nvlm_trt.client.batch_output import Tally


def batch(
    requests: Annotated[Path, typer.Argument(help="JSONL of requests: id, prompt or messages, images, options.")],
    answers: Annotated[Path, typer.Argument(help="JSONL of records; it grows, and a run goes on where one ended.")],
    url: Annotated[str, typer.Option(help="HOST:PORT of the server's gRPC.")] = "127.0.0.1:8001",
    concurrency: Annotated[int, typer.Option(min=1, max=512, help="Requests under way at a time.")] = 8,
    attempts: Annotated[int, typer.Option(min=1, help="How often a request is sent while the server is at fault.")] = 6,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again what has an error in the output.")
    ] = False,
    idle_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds of a server's silence on a request that end an attempt.")
    ] = 600.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the input and show what would be asked; ask and write nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object, no progress.")] = False,
) -> None:
    """Ask a running server every request of a file; the same command again goes on where a run ended.

    The whole input is checked before anything is sent. Every answer is on the disk before its place is free for the
    next request, in the order in which answers come. A request that the server refuses has an error in place of a text.

    Exit code 0: every request was answered; 1: some could not be, or the server is gone; 2: the input is wrong.
    """
    from nvlm_trt.client.address import check_address
    from nvlm_trt.client.batch import plan_batch

    check_address(url)
    if dry_run:
        _show_plan(plan_batch(requests, answers, retry_failed=retry_failed), requests, answers, as_json=json)
        return
    plan, tally, seconds = _run(
        requests,
        answers,
        url,
        concurrency=concurrency,
        attempts=attempts,
        retry_failed=retry_failed,
        idle_timeout=idle_timeout,
        silent=quiet or json,
    )
    _show(plan, tally, seconds, requests, answers, as_json=json)
    if tally.failed:
        raise typer.Exit(1)


def _run(
    requests: Path,
    answers: Path,
    url: str,
    *,
    concurrency: int,
    attempts: int,
    retry_failed: bool,
    idle_timeout: float,
    silent: bool,
) -> tuple[BatchPlan, Tally, float]:
    """Ask what is missing; what was planned, what the output holds, and the seconds that it took."""
    import asyncio
    import time

    from nvlm_trt.cli.batch_progress import progress_for
    from nvlm_trt.client import AsyncNvlmClient
    from nvlm_trt.client.batch import Batch
    from nvlm_trt.client.batch_ask import Asker
    from nvlm_trt.client.retry import Backoff
    from nvlm_trt.errors import ServerError

    with Batch(requests, answers, retry_failed=retry_failed) as opened:
        plan = opened.plan
        started = time.monotonic()

        async def run() -> Tally:
            async with AsyncNvlmClient(url, idle_timeout=idle_timeout) as client:
                with progress_for(plan.facts.records, plan.kept.done, silent=silent) as report:
                    asker = Asker(client, Backoff(attempts))
                    return await opened.run(asker, concurrency=concurrency, progress=report)

        try:
            return plan, asyncio.run(run()), time.monotonic() - started
        except (KeyboardInterrupt, ServerError):
            typer.echo(f"stopped; what was answered is in {answers}, and the same command goes on from there", err=True)
            raise


def _show_plan(plan: BatchPlan, requests: Path, answers: Path, *, as_json: bool) -> None:
    """What would be asked."""
    from nvlm_trt.cli.output import print_json

    if as_json:
        print_json(
            {
                "requests": str(requests),
                "answers": str(answers),
                "records": plan.facts.records,
                "images": plan.facts.images,
                "answered": plan.kept.answered,
                "failed": plan.kept.failed,
                "to_ask": plan.to_ask,
            }
        )
        return
    typer.echo(f"{requests}: {plan.facts.records} records, {plan.facts.images} images")
    typer.echo(f"{answers}: {plan.kept.answered} answered, {plan.kept.failed} failed, {plan.to_ask} to ask")


def _show(plan: BatchPlan, tally: Tally, seconds: float, requests: Path, answers: Path, *, as_json: bool) -> None:
    from nvlm_trt.cli.output import print_json

    if as_json:
        print_json(
            {
                "requests": str(requests),
                "answers": str(answers),
                "records": plan.facts.records,
                "answered": tally.answered,
                "failed": tally.failed,
                "asked": plan.to_ask,
                "num_input_tokens": tally.num_input_tokens,
                "num_output_tokens": tally.num_output_tokens,
                "seconds": round(seconds, 3),
            }
        )
        return
    typer.echo(f"{answers}: {tally.answered} answered, {tally.failed} failed, {plan.to_ask} asked in {seconds:.1f} s")
    if tally.failed:
        typer.echo(f"{tally.failed} requests have an error; --retry-failed asks them again", err=True)

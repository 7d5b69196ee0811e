"""`nvlm-trt eval`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from nvlm_trt.eval.adapters.datasets import Published
    from nvlm_trt.eval.answer import AnswerOptions
    from nvlm_trt.eval.records import Record
    from nvlm_trt.eval.summary import Score, Summary
    from nvlm_trt.eval.tasks import Sample
    from nvlm_trt.subjects import Subject

Tags = Literal["kept", "removed", "shuffled"]


def eval(
    task: Annotated[
        str, typer.Option(help="A JSONL file, shipped:nvlm-d-mini, or a published data set's name, with --data.")
    ],
    engine_dir: Annotated[Path | None, typer.Argument(help="An engine directory; or give --url.")] = None,
    data: Annotated[Path | None, typer.Option(help="The folder of the published data set.")] = None,
    url: Annotated[str | None, typer.Option(help="HOST:PORT of a server's gRPC, in place of an engine.")] = None,
    emulate: Annotated[
        str | None, typer.Option(metavar="PRECISION", help="Run the checkpoint in torch in this precision.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="For --emulate: where the checkpoint lies now.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many samples, from the first one on.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Samples asked at a time; default 4, torch 1.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the records; default ENGINE_DIR/eval/TASK.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of an answer, where a sample says none.")
    ] = None,
    max_tiles: Annotated[int | None, typer.Option(min=1, max=12, help="Tiles of an image, for all samples.")] = None,
    tags: Annotated[Tags, typer.Option(help="Text tags of tiles as trained, left out, or permuted.")] = "kept",
    seed: Annotated[int, typer.Option(help="Of the permutation of the tags.")] = 0,
    idle_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds of a server's silence that end a wait.")
    ] = 120.0,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check the command line and show what would be asked; ask and write nothing."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object, no progress.")] = False,
) -> None:
    """Put the questions of a task to an engine, a server or a checkpoint in torch, and score the answers.

    Every answer is recorded as it comes; the same command again asks only what is missing. Data sets: docvqa, chartqa,
    textvqa, vqav2, ocrbench, ai2d, ai2d_no_mask, realworldqa, mathvista, mmmu. Precisions for --emulate: fp32, bf16,
    and those of the gpu target.

    Exit code 0: every sample was answered; 1: some could not be.
    """
    from dataclasses import asdict

    from nvlm_trt.cli.output import print_json
    from nvlm_trt.durable import write_atomic
    from nvlm_trt.eval.answer import AnswerOptions
    from nvlm_trt.eval.summary import summarise
    from nvlm_trt.miniature.shipped import SHIPPED_PREFIX

    options = AnswerOptions(max_tokens, max_tiles, tags, seed)
    subject = _subject(engine_dir, url, emulate, checkpoint, options, idle_timeout)
    folder = output or (engine_dir or Path()) / "eval" / Path(task.removeprefix(SHIPPED_PREFIX)).stem
    if dry_run:
        _show_plan(task, data, limit, folder, as_json=json)
        return
    samples, published = _samples(task, data, folder / "images", limit)
    with subject as opened:
        records = _run(samples, opened, folder, concurrency or (1 if emulate else 4), silent=quiet or json)
        title = opened.title
    summary = summarise(records)
    first_error = next((record.error for record in records if record.error is not None), None)
    facts = {
        "task": task,
        "subject": title,
        "options": asdict(options),
        **summary.as_json(),
        "first_error": first_error,
        "published": None if published is None else asdict(published),
        "records": str(folder),
    }
    write_atomic(folder / "summary.json", (_encoded(facts) + "\n").encode())
    if json:
        print_json(facts)
    else:
        _show(f"{task}: {title}", summary, published, folder)
        if first_error is not None:
            count = summary.overall.failed
            typer.echo(f"{count} samples could not be answered and count as wrong, the first: {first_error}", err=True)
    if summary.overall.failed:
        raise typer.Exit(1)


def _subject(
    engine_dir: Path | None,
    url: str | None,
    emulate: str | None,
    checkpoint: Path | None,
    options: AnswerOptions,
    idle_timeout: float,
) -> AbstractContextManager[Subject]:
    """Who is asked: checked at once, opened when it is entered."""
    from nvlm_trt.errors import UserError
    from nvlm_trt.subjects import engine_subject, server_subject, torch_subject

    if (engine_dir is None) == (url is None):
        raise UserError(
            "one must be asked",
            seen="neither an engine directory nor --url" if url is None else f"{engine_dir} and --url {url}",
            expected="an engine directory or --url",
            fix="give one of the two",
        )
    if checkpoint is not None and emulate is None:
        raise UserError(
            "--checkpoint is for --emulate alone",
            seen=f"--checkpoint {checkpoint}",
            expected="--emulate PRECISION beside it",
            fix="leave it out, or give --emulate",
        )
    if engine_dir is None:
        if emulate is not None:
            raise UserError(
                "--emulate runs the checkpoint of an engine directory",
                seen=f"--url {url}",
                expected="an engine directory",
                fix="give that in place of --url",
            )
        assert url is not None
        return server_subject(url, options, idle_timeout=idle_timeout)
    if emulate is not None:
        return torch_subject(engine_dir, emulate, options, checkpoint=checkpoint)
    return engine_subject(engine_dir, options)


def _samples(
    task: str, data: Path | None, extracted: Path, limit: int | None
) -> tuple[tuple[Sample, ...], Published | None]:
    """The samples, and the figures of NVLM-D-72B where the task is a published data set."""
    from nvlm_trt.errors import UserError
    from nvlm_trt.eval.adapters.datasets import DATASETS, read_dataset
    from nvlm_trt.eval.tasks import read_tasks
    from nvlm_trt.miniature import shipped

    if data is not None:
        samples, dataset = read_dataset(task, data, extracted, limit), DATASETS[task]
        published = dataset.published_for(samples) if limit is None else None
        if published is None:
            whole = "all samples" if limit is not None else f"all {dataset.parts} categories"
            typer.echo(f"no published figure beside these: it is of {whole}", err=True)
        return samples, published
    if task in DATASETS:
        raise UserError(f"{DATASETS[task].title} is read from a folder that you have", fix="give it with --data")
    return read_tasks(shipped.resolve(task, shipped.GATE_TASK))[:limit], None


def _run(
    samples: tuple[Sample, ...], subject: Subject, folder: Path, concurrency: int, *, silent: bool
) -> list[Record]:
    """Answer and score, with a bar on stderr."""
    from nvlm_trt.cli.bars import counting_bars
    from nvlm_trt.eval.run import run_eval

    with counting_bars(silent=silent) as bars:
        bar = bars.add_task("samples", total=len(samples))
        return run_eval(
            samples,
            subject.answerer,
            identity=subject.identity,
            output=folder,
            concurrency=concurrency,
            progress=lambda done, _total: bars.update(bar, completed=done),
        )


def _show_plan(task: str, data: Path | None, limit: int | None, folder: Path, *, as_json: bool) -> None:
    """What would be asked."""
    import tempfile
    from collections import Counter

    from nvlm_trt.cli.output import print_json, print_table

    with tempfile.TemporaryDirectory(prefix="nvlm-trt-eval-") as extracted:
        samples, _ = _samples(task, data, Path(extracted), limit)
        _check_images(samples)
    counted = Counter((sample.category, sample.metric) for sample in samples)
    if as_json:
        parts = [
            {"category": category, "metric": metric, "samples": count}
            for (category, metric), count in sorted(counted.items())
        ]
        images = sum(len(sample.images) for sample in samples)
        print_json({"task": task, "samples": len(samples), "images": images, "parts": parts, "records": str(folder)})
        return
    rows = [(category or "-", metric, count) for (category, metric), count in sorted(counted.items())]
    print_table(("category", "metric", "samples"), [*rows, ("all", "", len(samples))])
    typer.echo(f"\nfirst question: {samples[0].question}")
    typer.echo(f"records would go to {folder}")


def _check_images(samples: tuple[Sample, ...]) -> None:
    """Look at the header of every image; what is beyond an engine's limits is its own matter.

    Raises:
        UserError: naming the images that are none.
    """
    from nvlm_trt.cli.conversation import read_bytes
    from nvlm_trt.errors import ImageRejected, UserError, listed
    from nvlm_trt.model.image import ImageLimits, read_size

    anything = ImageLimits(max_bytes=1 << 62, max_pixels=1 << 62, max_side=1 << 62, min_side=1)
    faults = []
    for sample in samples:
        for path in sample.images:
            try:
                read_size(read_bytes(path), anything, exif_orientation=False)
            except ImageRejected as error:
                faults.append(f"sample {sample.id}: {error.named(path)}")
    if faults:
        fix = "mend them: in a run their samples count as wrong"
        raise UserError(f"{len(faults)} images cannot be read{listed(faults)}", fix=fix)


def _show(title: str, summary: Summary, published: Published | None, folder: Path) -> None:
    from nvlm_trt.cli.output import print_table

    typer.echo(f"{title}\n")
    rows = [_row(score) for score in (*summary.categories, summary.overall)]
    header: tuple[str, ...] = ("category", "samples", "failed", "score %", "95% interval")
    if published is not None:
        header += ("NVLM-D-72B published",)
        rows = [(*row, "") for row in rows[:-1]] + [(*rows[-1], f"{published.nearest} ({published.split})")]
    print_table(header, rows)
    typer.echo(f"\nrecords: {folder}")


def _row(score: Score) -> tuple[object, ...]:
    interval = f"{100 * score.low:.1f} to {100 * score.high:.1f}"
    return score.name or "all", score.samples, score.failed, f"{100 * score.mean:.1f}", interval


def _encoded(facts: dict[str, object]) -> str:
    import json

    return json.dumps(facts, ensure_ascii=False, indent=2)

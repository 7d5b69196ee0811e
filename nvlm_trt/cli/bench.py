"""`nvlm-trt bench`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from nvlm_trt.bench.plan import Plan

Word = TypeVar("Word", bound=str)

MOST_AT_A_TIME = 256
PEERS = "hf, vllm, vllm-eager, openvino-genai, openvino-genai-int8"

Directories = Annotated[list[Path] | None, typer.Argument(help="Engine directories, one for each precision.")]


def bench(
    engine_dirs: Directories = None,
    url: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="gRPC of a server that runs already.")] = None,
    http_url: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="HTTP of a server that runs.")] = None,
    transport: Annotated[
        str, typer.Option(help="How engines are asked: local, grpc, http, with commas; the last two start a server.")
    ] = "local",
    served: Annotated[
        str, typer.Option(metavar="NAMES", help="Engines that grpc and http start a server for; all, or some by name.")
    ] = "all",
    baseline: Annotated[str, typer.Option(help="The torch reference: bf16, fp32, bf16,fp32 or none.")] = "bf16",
    checkpoint: Annotated[Path | None, typer.Option(help="Where the baseline's checkpoint lies now.")] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Questions with answers, a JSONL file or shipped:nvlm-d-mini: measures accuracy."),
    ] = None,
    task_limit: Annotated[int | None, typer.Option(min=1, help="Questions of the task at most.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often everybody is measured, in turns.")] = 5,
    concurrency: Annotated[str, typer.Option(help="Requests under way, one level after the other.")] = "1,2,4,8",
    requests: Annotated[int, typer.Option(min=1, max=1000, help="Requests of each level and round, at least.")] = 8,
    warmup: Annotated[int, typer.Option(min=1, max=100, help="Requests before that, shown apart.")] = 2,
    prompt: Annotated[str | None, typer.Option(help="The text of every request.")] = None,
    max_tokens: Annotated[int, typer.Option(min=2, max=4096, help="Tokens of every answer, exactly.")] = 32,
    image: Annotated[list[Path] | None, typer.Option(help="An image in place of made ones; again for more.")] = None,
    text_only: Annotated[bool, typer.Option("--text-only", help="Ask without images.")] = False,
    columns: Annotated[int, typer.Option(min=1, max=12, help="Columns of tiles of a made image.")] = 2,
    rows: Annotated[int, typer.Option(min=1, max=12, help="Rows of tiles of a made image.")] = 1,
    scenario: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="What is measured, with commas: load, repeat, turns, stall, streams, prefill, decode, vision, growth, "
            "first.",
        ),
    ] = "load",
    repeats: Annotated[int, typer.Option(min=1, max=100, help="Requests of each case of a scenario and round.")] = 2,
    peer_tools: Annotated[str, typer.Option(help="Run perf_analyzer (grpc), aiperf (http) beside us.")] = "",
    peer_engines: Annotated[
        str, typer.Option(metavar="NAMES", help=f"Engines of others to measure too: {PEERS}.")
    ] = "",
    peers_dir: Annotated[Path, typer.Option(help="Where scripts/peers.sh has installed them.")] = Path(".peers"),
    round_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds after which a round of a subject is given up.")
    ] = 3600.0,
    output: Annotated[Path | None, typer.Option(help="Folder of the report; default engines/bench/<time>.")] = None,
    no_plots: Annotated[bool, typer.Option("--no-plots", help="Draw no PNG, as without the extra plots.")] = False,
    compare: Annotated[tuple[Path, Path] | None, typer.Option(help="Compare two report.json, measure nothing.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show what would be done.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object, no progress.")] = False,
) -> None:
    """Measure engines of several precisions side by side, beside the torch reference.

    Accuracy, size, load time, memory, time to first token, inter-token latency, throughput under load, and the shares
    of what the machine can do, in rounds of which each measures everybody. Writes report.json, report.md and plots.
    Exit code 0: all was measured; 1: an engine failed, the others' figures stand; 130: interrupted, the rounds that
    were finished are in the report.
    """
    if compare is not None:
        _compare(compare, json=json)
        return
    from nvlm_trt.bench.peers.engines import PEERS as KNOWN_PEERS
    from nvlm_trt.bench.plan import Request, make_plan
    from nvlm_trt.bench.scenarios import NAMES
    from nvlm_trt.bench.show.plots import NO_PLOTS, can_draw
    from nvlm_trt.bench.workload import PROMPT, Workload
    from nvlm_trt.errors import UserError
    from nvlm_trt.miniature import shipped

    if text_only and image:
        raise UserError("--text-only and --image exclude each other")
    if prompt == "":
        raise UserError("--prompt is empty", seen="''", expected="a text", fix=f"leave it out to ask {PROMPT!r}")
    if task_limit is not None and task is None:
        raise UserError(
            "--task-limit counts questions of a task",
            seen=f"--task-limit {task_limit}",
            expected="--task FILE beside it",
            fix="leave it out, or give --task",
        )
    workload = Workload(
        prompt=PROMPT if prompt is None else prompt,
        images=tuple(image or ()),
        text_only=text_only,
        columns=columns,
        rows=rows,
        max_tokens=max_tokens,
        concurrencies=_levels(concurrency),
        requests=requests,
        warmup=warmup,
        scenarios=_words("--scenario", scenario, NAMES),
        repeats=repeats,
    )
    request = Request(
        engines=tuple(engine_dirs or ()),
        grpc_url=url,
        http_url=http_url,
        transports=_words("--transport", transport, ("local", "grpc", "http")),
        served=None if served == "all" else frozenset(name.strip() for name in served.split(",")),
        baselines=() if baseline == "none" else _words("--baseline", baseline, ("bf16", "fp32")),
        checkpoint=checkpoint,
        workload=workload,
        rounds=rounds,
        task=None if task is None else shipped.resolve(task, shipped.GATE_TASK),
        task_limit=task_limit,
        tools=_words("--peer-tools", peer_tools, ("perf_analyzer", "aiperf")) if peer_tools else (),
        peers=_words("--peer-engines", peer_engines, tuple(KNOWN_PEERS)) if peer_engines else (),
        peers_dir=peers_dir,
    )
    plan = make_plan(request)
    plots = not no_plots and can_draw()
    if not (plots or no_plots):
        typer.echo(NO_PLOTS, err=True)
    if dry_run:
        _show_plan(plan, json=json)
    else:
        _measure(plan, output, round_timeout, plots=plots, quiet=quiet, json=json)


def _measure(plan: Plan, output: Path | None, round_timeout: float, *, plots: bool, quiet: bool, json: bool) -> None:
    """Measure, write the report after every round, and show it."""
    import signal

    from nvlm_trt.bench.child import TaskFiles, Workers
    from nvlm_trt.bench.files import ReportFolder, default_folder
    from nvlm_trt.bench.run import Benchmark
    from nvlm_trt.bench.show.markdown import as_markdown
    from nvlm_trt.cli.output import print_json
    from nvlm_trt.pipeline.progress import reporter_for

    request = plan.request
    folder = ReportFolder(output or default_folder())
    task = TaskFiles(request.task, request.task_limit, folder.answers) if request.task else None
    say = reporter_for(silent=quiet or json).line
    workers = Workers(request.workload, plan.bounds_of, round_timeout, task, lambda word: say(f"  {word}"))
    benchmark = Benchmark(plan, workers, say, folder.save)
    endings = (signal.SIGTERM, signal.SIGHUP)  # as Ctrl-C: workers, of sessions of their own, are ended, rounds kept
    previous = [signal.signal(each, signal.default_int_handler) for each in endings]
    try:
        whole = benchmark.run()
    finally:
        for each, handler in zip(endings, previous, strict=True):
            signal.signal(each, handler)
    report = benchmark.report()
    pictures = folder.finish(report, plots=plots)
    if json:
        print_json(report.model_dump(mode="json"))
    else:
        typer.echo(as_markdown(report, pictures))
    say(f"written to {folder.path}")
    if not whole:
        say(f"interrupted after {report.rounds_done} of {report.rounds_asked} rounds")
        raise KeyboardInterrupt
    if any(subject.failure for subject in report.subjects):
        raise typer.Exit(1)


def _compare(paths: tuple[Path, Path], *, json: bool) -> None:
    from nvlm_trt.bench.report import read_report
    from nvlm_trt.bench.show.compare import compare
    from nvlm_trt.cli.output import print_json, print_table

    found = compare(*(read_report(path) for path in paths))
    if json:
        print_json(found.as_json())
        return
    print_table(("subject", "metric", "first", "second", "ratio", "verdict"), found.rows())
    for side, names in (("first", found.only_first), ("second", found.only_second)):
        if names:
            typer.echo(f"only in the {side} report: {', '.join(names)}")
    for remark in found.remarks:
        typer.echo(remark)


def _show_plan(plan: Plan, *, json: bool) -> None:
    from nvlm_trt.cli.output import print_json, print_table

    request, workload = plan.request, plan.request.workload
    facts = {
        "rounds": request.rounds,
        "requests_per_round": workload.per_round(),
        "prompt_tokens": plan.prompt_tokens,
        "output_tokens": workload.max_tokens,
        "concurrencies": list(workload.levels),
        "scenarios": list(workload.scenarios),
        "task_samples": plan.task.samples if plan.task else None,
    }
    if json:
        subjects = [{"name": each.name, "kind": each.kind, "transport": each.transport} for each in plan.subjects]
        print_json({**facts, "subjects": subjects, "remarks": list(plan.remarks)})
        return
    for name, value in facts.items():
        typer.echo(f"{name.replace('_', ' '):20}{'-' if value is None else value}")
    typer.echo()
    rows = [
        (each.name, each.kind, each.transport, ", ".join(plan.tools_of(each)) or "-", "baseline" if not place else "")
        for place, each in enumerate(plan.subjects)
    ]
    print_table(("subject", "kind", "asked by", "tools beside", ""), rows)
    for remark in plan.remarks:
        typer.echo(remark)


def _words(option: str, given: str, known: Sequence[Word]) -> tuple[Word, ...]:
    """Words with commas between, each of them known; doubles count once."""
    from nvlm_trt.errors import UserError

    words = dict.fromkeys(word.strip() for word in given.split(","))
    chosen = {word: each for word in words for each in known if each == word}
    if len(chosen) < len(words):
        unknown = next(word for word in words if word not in chosen)
        raise UserError(f"{option} has no such choice", seen=unknown, expected=", ".join(known))
    return tuple(chosen.values())


def _levels(given: str) -> tuple[int, ...]:
    """Whole numbers from 1 to 256 with commas between."""
    from nvlm_trt.errors import UserError

    words = [word.strip() for word in given.split(",")]
    if not all(word.isascii() and word.isdigit() and 1 <= int(word) <= MOST_AT_A_TIME for word in words):
        raise UserError(
            "--concurrency is a list of numbers", seen=given, expected=f"1 to {MOST_AT_A_TIME}, such as 1,2,4,8"
        )
    return tuple(map(int, words))

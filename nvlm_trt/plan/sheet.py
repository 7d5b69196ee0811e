"""A plan as tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from nvlm_trt.datasheets.datasheet import Datasheet
from nvlm_trt.pipeline.preflight import in_words
from nvlm_trt.plan.costs import BuildCosts
from nvlm_trt.plan.deployment import Deployment
from nvlm_trt.plan.facts import METHOD
from nvlm_trt.plan.flops import prefill_flops, vision_flops_per_tile
from nvlm_trt.plan.roofline import Bound
from nvlm_trt.plan.sizes import tile_tensor_bytes
from nvlm_trt.plan.verdict import Capacity, Verdict
from nvlm_trt.plan.workload import Speed, Workload

Row = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table: its title, the names of its columns, its rows, and remarks below it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def heading(verdict: Verdict, remedies: Sequence[str], gpus: int) -> Iterator[str]:
    """The verdict, and what it is about, in lines."""
    deployment = verdict.deployment
    recipe, gpu = deployment.recipe, deployment.gpu
    says = "does not fit" if not verdict.fits else "fits" if verdict.ok else "fits, but falls short"
    yield f"{recipe.name} on {gpus} x {gpu.name}: {says}"
    yield from (f"  - {reason}" for reason in (*verdict.blockers, *verdict.misses))
    if not verdict.ok:
        changes = [f"  - {remedy}" for remedy in remedies] or [
            "  - no single change; --all-precisions shows each with every tp"
        ]
        yield from ("would do it, one of" if verdict.fits else "would fit with one of", *changes)
    yield ""
    cache = (deployment.precision.quantization.kv_cache_quant_algo or deployment.precision.dtype.name).lower()
    yield f"gpu          {gpu.title}"
    if gpus // deployment.gpus > 1:
        copies = gpus // deployment.gpus
        yield f"copies       {copies} of {deployment.gpus} GPUs each; all figures are of one"
    yield (
        f"model        {deployment.sources.checkpoint.path.name}: decoder {recipe.decoder_precision}, "
        f"KV cache {cache}, tp {recipe.tp} x pp {recipe.pp}; "
        f"vision {recipe.vision_precision} on {deployment.vision_gpus} GPUs"
    )
    yield f"request      {_request(verdict.workload)}"
    yield f"method       {METHOD}"
    applied = gpu.corrections.applied()
    listed = [f"{name} {correction.value:g} ({correction.source})" for name, correction in applied.items()]
    yield f"corrections  {'; '.join(listed) or 'none'}"


def _request(workload: Workload) -> str:
    images = f"{workload.images} x {workload.tiles} tiles = {workload.visual_tokens:,} visual"
    limit = "" if workload.ttft_limit_ms is None else f"; first token within {workload.ttft_limit_ms:g} ms"
    return (
        f"{images} + {workload.text_tokens:,} text + {workload.output_tokens:,} output = "
        f"{workload.request_tokens:,} tokens; {workload.concurrency:,} at a time{limit}"
    )


def memory_table(deployment: Deployment, capacity: Capacity, workload: Workload) -> Table:
    """What lies on each GPU; equal neighbours share a column."""
    groups = [list(group) for _, group in groupby(enumerate(capacity.gpus), key=lambda pair: pair[1])]
    memories = [group[0][1] for group in groups]
    names = [f"GPU {group[0][0]}" if len(group) == 1 else f"GPU {group[0][0]}-{group[-1][0]}" for group in groups]
    share = deployment.assumptions.memory_share

    def row(name: str, values: Sequence[int]) -> Row:
        return (name, *(_gb(value) for value in values))

    rows = (
        row("memory as sold", [memory.memory for memory in memories]),
        row(f"of it used at most ({share:.0%})", [memory.usable for memory in memories]),
        row("- CUDA, NCCL, workspaces, server", [memory.reserve for memory in memories]),
        row("- decoder weights", [memory.decoder for memory in memories]),
        row("- vision engine", [memory.vision for memory in memories]),
        row(f"- prompt tables, {_buffers(deployment)} rows", [memory.prompt_table for memory in memories]),
        row("- activations (estimate)", [memory.activations for memory in memories]),
        row("left for the KV cache", [memory.left for memory in memories]),
        ("KV cache, kB a token", *(f"{memory.kv_per_token / 1e3:,.1f}" for memory in memories)),
        ("KV cache, tokens", *(f"{memory.kv_tokens:,}" for memory in memories)),
        row(f"kv_cache_fraction {memories[0].kv_fraction:g} leaves", [memory.spare for memory in memories]),
        row(f"- prompt tables of {workload.concurrency:,} under way", [capacity.tables for _ in memories]),
    )
    holds = (
        f"the KV cache holds {capacity.kv_tokens:,} tokens: {capacity.requests:,} such requests at a time; "
        f"the engine takes {deployment.recipe.max_batch_size:,}"
    )
    tiles = in_words(tile_tensor_bytes(deployment.config, workload.total_tiles))
    table = in_words(deployment.prompt_table_bytes(workload.visual_tokens))
    carries = f"a request carries {tiles} of tiles (uint8) and {table} of prompt table from model to model"
    return Table("memory of a GPU, GB", ("", *names), rows, (holds, carries))


def _buffers(deployment: Deployment) -> str:
    """The factors of the rows that are set aside, those of the pipeline only where there is one."""
    recipe = deployment.recipe
    stages = f"{recipe.pp} x " if recipe.pp > 1 else ""
    return f"{stages}{recipe.max_batch_size} x {deployment.sources.max_table_rows:,}"


def speed_table(deployment: Deployment, speed: Speed) -> Table:
    """What one request and all of them see, at best."""
    workload, decoder = speed.workload, deployment.decoder
    busiest = -(-workload.total_tiles // deployment.vision_gpus)
    per_tile = vision_flops_per_tile(deployment.config)
    rows: list[Row] = [
        ("vision", *_bound(speed.vision), f"{busiest} tiles on the busiest GPU, {per_tile / 1e12:.2f} TFLOP each"),
        (
            "prefill",
            *_bound(speed.prefill),
            f"{workload.prompt_tokens:,} tokens, {prefill_flops(decoder, workload.prompt_tokens) / 1e12:.1f} TFLOP",
        ),
        ("first token, alone", _ms(speed.first_token_s), "", "vision + prefill on idle GPUs"),
    ]
    if workload.concurrency > 1:
        others = workload.concurrency - 1
        burst = f"{workload.concurrency} requests at the same moment: the last one"
        rows += [
            ("first token", _ms(speed.ttft_s), "", f"+ the step under way of {others} others, evenly spread"),
            ("first token, burst", _ms(speed.burst_ttft_s), "", burst),
        ]
    engine = (*_bound(speed.step.engine), f"batch {workload.concurrency}, context {workload.mean_context:,}")
    if workload.visual_tokens:
        table = in_words(deployment.prompt_table_bytes(workload.visual_tokens))
        copies = f"{workload.concurrency} of {table}, copied before every step"
        rows += [
            ("decode step", *engine),
            ("prompt tables", _ms(speed.step.tables_s), "memory", copies),
            ("next token", _ms(speed.step.seconds), "", "both"),
        ]
    else:
        rows += [("next token", *engine)]
    if workload.concurrency > 1:
        rows += [("next token, mean", _ms(speed.mean_itl_s), "", "with vision and prefill of the others in between")]
    throughput = f"at best {speed.requests_per_s:.1f} requests/s, {speed.output_tokens_per_s:,.0f} output tokens/s"
    sent, seconds = in_words(round(speed.all_reduce_bytes)), speed.all_reduce_s
    reduces = f"not in these times: {sent} that each GPU sends in the all-reduces of a prefill, " + (
        "over the network between nodes, whose speed decides"
        if seconds is None
        else f"{_ms(seconds)} ms at the speed of its {deployment.gpu.interconnect.kind}"
    )
    counted = deployment.gpu.corrections.interconnect_share is not None and seconds is not None
    notes = (throughput,) if deployment.recipe.tp == 1 or counted else (throughput, reduces)
    return Table("time at best, ms", ("", "ms", "bound by", ""), tuple(rows), notes)


def step_table(speed: Speed) -> Table:
    """Decode steps by batch size."""
    rows = [
        (
            step.batch,
            *_bound(step.engine),
            f"+{_ms(step.tables_s)}",
            f"{1 / step.seconds:,.0f}",
            f"{step.tokens_per_s:,.0f}",
        )
        for step in speed.steps
    ]
    note = f"matrix products turn compute-bound at a batch of about {speed.compute_bound_batch}"
    title = f"decode steps at best, context {speed.workload.mean_context:,}"
    header = ("batch", "ms", "bound by", "tables", "tokens/s each", "tokens/s all")
    return Table(title, header, tuple(rows), (note,))


def choice_table(
    verdicts: Sequence[Verdict], chosen: Verdict | None, after_change: tuple[Verdict, str] | None
) -> Table:
    """The choices side by side, the cheapest one that does what is asked marked; a cheaper one after a change below."""
    rows = []
    for verdict in verdicts:
        capacity, speed = verdict.capacity, verdict.speed
        reasons = (*verdict.blockers, *verdict.misses)
        rows.append(
            (
                "->" if verdict is chosen else "",
                verdict.deployment.recipe.decoder_precision,
                verdict.deployment.gpus,
                "yes" if verdict.fits else "no",
                f"{capacity.kv_tokens:,}" if capacity else "-",
                f"{capacity.requests:,}" if capacity else "-",
                _ms(speed.ttft_s) if speed else "-",
                _ms(speed.step.seconds) if speed else "-",
                f"{speed.requests_per_s:.1f}" if speed else "-",
                "; ".join(reasons),
            )
        )
    header = ("", "decoder", "GPUs", "fits", "KV tokens", "requests", "TTFT ms", "ITL ms", "requests/s", "")
    notes = ["-> fewest GPUs that do what is asked" if chosen else "none of these does what is asked"]
    if after_change is not None:
        cheaper, words = after_change
        recipe, count = cheaper.deployment.recipe, cheaper.deployment.gpus
        notes.append(f"{count} GPU{'s' * (count > 1)} would do with {recipe.decoder_precision} and {words}")
    return Table("choices", header, tuple(rows), tuple(notes))


def cost_table(costs: BuildCosts) -> Table:
    """What a build takes."""
    rows = [
        (
            stage.name,
            "-" if stage.disk_bytes is None else in_words(stage.disk_bytes),
            "-" if stage.memory_bytes is None else in_words(stage.memory_bytes),
            "unknown until measured" if stage.seconds is None else f"{stage.seconds:,.0f} s",
        )
        for stage in costs.stages
    ]
    least = "at least " if any(stage.disk_bytes is None for stage in costs.stages) else ""
    rate = f"times: bytes at {costs.disk_rate / 1e9:g} GB/s of disk, an assumption (--disk-gbps)"
    notes = (costs.unknown,) if costs.unknown else (f"{least}{in_words(costs.disk_bytes)} of disk at a time; {rate}",)
    return Table("build", ("stage", "disk", "host memory", "time at best"), tuple(rows), notes)


def gpu_table(gpus: Sequence[Datasheet]) -> Table:
    """GPU models side by side."""
    rows = []
    for gpu in gpus:
        peaks = gpu.peak_tflops
        rows.append(
            (
                gpu.name,
                gpu.compute_capability,
                f"{gpu.memory_gb:g}",
                f"{gpu.bandwidth_gb_per_s:,.0f}",
                f"{peaks.bf16:,.0f}",
                "-" if peaks.fp8 is None else f"{peaks.fp8:,.0f}",
                f"{peaks.int8:,.0f}",
                f"{gpu.interconnect.kind} {gpu.interconnect.gb_per_s:g}",
                gpu.title,
            )
        )
    header = ("name", "SM", "GB", "GB/s", "bf16 TFLOP/s", "fp8 TFLOP/s", "int8 TOP/s", "link GB/s", "")
    return Table("GPU models", header, tuple(rows), ("dense peaks; sources in nvlm_trt/datasheets",))


def _bound(bound: Bound) -> tuple[str, str]:
    return _ms(bound.seconds), bound.by if bound.seconds else "-"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f}"


def _gb(count: int) -> str:
    return f"{count / 1e9:,.2f}"

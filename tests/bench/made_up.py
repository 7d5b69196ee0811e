"""Rounds and a report made up of round numbers, so that tests need no clock."""

from __future__ import annotations

from pathlib import Path

from nvlm_trt.bench.assemble import (
    Column,
    ceiling_reports,
    definitions,
    growth_reports,
    peer_figures,
    subject_reports,
)
from nvlm_trt.bench.record import (
    CaseRecord,
    PeerRecord,
    Rate,
    RequestRecord,
    RoundRecord,
    ScenarioName,
    WaveRecord,
)
from nvlm_trt.bench.report import Machine, Report, Task
from nvlm_trt.bench.subjects import EngineSubject, ReferenceSubject
from nvlm_trt.bench.work import reference_work
from nvlm_trt.bench.workload import Workload
from nvlm_trt.model.synthetic import tiny_spec


def made_request(ttft_s: float = 0.5, total_s: float = 1.5) -> RequestRecord:
    """100 prompt tokens, one image of 3 tiles, 11 tokens of answer; 0.1 s of preprocessing and 0.2 s of vision."""
    return RequestRecord(
        ttft_s=ttft_s,
        total_s=total_s,
        prompt_tokens=100,
        output_tokens=11,
        images=1,
        tiles=3,
        preprocess_s=0.1,
        vision_s=0.2,
    )


def made_round(*ttfts: float, peers: tuple[PeerRecord, ...] = ()) -> RoundRecord:
    """A round with those times to first token alone, two requests together, and a slow first one."""
    alone = tuple(made_request(ttft, ttft + 1.0) for ttft in ttfts)
    together = (made_request(1.0, 3.0), made_request(2.0, 4.0))
    return RoundRecord(
        load_s=2.0,
        before_bytes=100 << 20,
        peak_bytes=356 << 20,
        warmup=(made_request(4.0, 5.0),),
        foreign_cores=0.05,
        waves=(
            WaveRecord(concurrency=1, wall_s=2.0 * len(ttfts), requests=alone),
            WaveRecord(concurrency=2, wall_s=4.0, requests=together),
        ),
        peers=peers,
    )


def made_cases() -> tuple[CaseRecord, ...]:
    """A case or two of every scenario: TTFT of an image 2 s at first and 0.5, 0.25 and 0.4 s later."""

    def case(
        scenario: ScenarioName, name: str, *requests: RequestRecord, size: int | None = None, last_after: float = 0.0
    ) -> CaseRecord:
        started = (*[0.0] * (len(requests) - 1), last_after)
        wall = max(begun + request.total_s for begun, request in zip(started, requests, strict=True))
        return CaseRecord(scenario=scenario, case=name, size=size, wall_s=wall, started_s=started, requests=requests)

    def waited(ttft_s: float, tiles: int = 7, tokens: int = 100) -> RequestRecord:
        return RequestRecord(
            ttft_s=ttft_s,
            total_s=ttft_s,
            prompt_tokens=tokens,
            output_tokens=1,
            images=1 if tiles else 0,
            tiles=tiles,
            vision_s=0.2 * tiles,
        )

    def answered(*arrivals: float) -> RequestRecord:
        return RequestRecord(
            ttft_s=arrivals[0],
            total_s=arrivals[-1],
            prompt_tokens=64,
            output_tokens=len(arrivals),
            images=0,
            arrivals_s=arrivals,
        )

    return (
        case("repeat", "first", waited(2.0)),
        case("repeat", "other text in front", waited(0.5)),
        case("repeat", "again", waited(0.25)),
        case("turns", "first", waited(2.0)),
        case("turns", "second", waited(0.4)),
        case("stall", "long prompt", answered(1.0, 1.1, 1.2, 1.5, 1.6, 1.7), waited(0.35), last_after=1.3),
        *(case("prefill", "text", waited(size / 500, 0, size), size=size) for size in (256, 512, 1024)),
        *(case("vision", "image", waited(0.2 * size + 0.1, size), size=size) for size in (1, 3, 7)),
        case("decode", "texts", answered(1.0, 1.1, 1.2), size=1),
        case("decode", "texts", answered(1.0, 1.5, 2.0), answered(1.0, 1.5, 2.0), size=2),
        *(case("streams", "texts", *[answered(0.5, 1.0 + size)] * size, size=size) for size in (1, 2, 4)),
        case("first", "text", waited(0.1, 0, 64), waited(0.3, 0, 64), size=2),
        case("first", "new image", waited(1.5, 3), waited(2.5, 3), size=2),
        case("first", "known image", waited(0.2, 3), waited(0.4, 3), size=2),
    )


def made_columns() -> list[Column]:
    """The reference, an engine twice as fast, and a served one that failed after its first round."""
    config = tiny_spec(tile_size=112).config
    folder = Path("mini-fp32")
    reference = ReferenceSubject(name="torch fp32", checkpoint=Path("checkpoint"), dtype="fp32", engine=folder)
    engine = EngineSubject(name="mini-fp32", transport="local", engine=folder)
    served = EngineSubject(name="mini-fp32 (grpc)", transport="grpc", engine=folder)
    figures = {"ttft": (480.0,), "itl": (100.0,), "tokens_per_s": (2.0,)}
    theirs = PeerRecord(tool="perf_analyzer", concurrency=1, figures=figures)
    work = reference_work(config, "fp32")
    return [
        Column(reference, "fp32 throughout", work, 3_000_000, [made_round(1.0, 1.2), made_round(1.4)], (1.0, 1.0)),
        Column(engine, "vision fp32", work, 5_000_000, [made_round(0.5, 0.6), made_round(0.7)], (1.0, 0.0)),
        Column(served, "vision fp32", None, 5_000_000, [made_round(0.5, peers=(theirs,))], failure="the server died"),
    ]


def with_cases(columns: list[Column]) -> list[Column]:
    """The columns, their rounds with a case or two of every scenario."""
    for column in columns:
        column.rounds = [done.model_copy(update={"cases": made_cases()}) for done in column.rounds]
    return columns


def made_report(columns: list[Column] | None = None) -> Report:
    """A report of `made_columns` on a machine that does not exist."""
    shown = made_columns() if columns is None else columns
    rates = [
        (
            Rate(name="read", by="torch", per_s=10e9 + step * 1e9),
            Rate(name="fp32", by="torch", per_s=100e9),
            Rate(name="fp32", by="OpenVINO", per_s=200e9 + step * 10e9),
        )
        for step in range(2)
    ]
    ceilings = ceiling_reports(rates)
    workload = Workload(max_tokens=11, concurrencies=(1, 2), requests=2)
    return Report(
        nvlm_trt="0.1.0",
        started="2026-01-02T03:04:05+00:00",
        seconds=67.5,
        complete=False,
        rounds_asked=2,
        rounds_done=2,
        baseline=shown[0].subject.name,
        machine=Machine(
            processor="Abacus 9000",
            cores=2,
            memory_bytes=24 << 30,
            system="Linux 6.1",
            gpus=(),
            versions={"python": "3.11.7", "torch": "2.13.0"},
        ),
        workload=workload,
        task=Task(name="task.jsonl", sha256="0" * 64, samples=2),
        prompt_tokens=100,
        remarks=("the torch reference answers one request at a time",),
        metrics=definitions(),
        ceilings=ceilings,
        subjects=subject_reports(shown, ceilings, workload.concurrencies),
        peers=peer_figures(shown),
        growth=growth_reports(shown),
    )

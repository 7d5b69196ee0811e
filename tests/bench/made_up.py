"""Rounds and a report made up of round numbers, so that tests need no clock."""

from __future__ import annotations

from pathlib import Path

from nvlm_trt.bench.assemble import Column, ceiling_reports, definitions, peer_figures, subject_reports
from nvlm_trt.bench.record import PeerRecord, Rate, RequestRecord, RoundRecord, WaveRecord
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
    )

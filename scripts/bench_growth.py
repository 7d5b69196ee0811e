#!/usr/bin/env python
"""How seconds and memory of the pipeline grow with layers and with ranks.

    python scripts/bench_growth.py --work DIR [--layers 8,16,32,64] [--ranks 1,2,4,8] [--rounds 3]

Makes random checkpoints of a narrow model with so many vision and decoder layers, and takes each up to its TensorRT-LLM
checkpoint: all layers at one rank, then the fewest layers at all ranks. Every build is a process of its own in a new
folder, and builds of all sizes take turns. Writes growth.json, growth.md and, where matplotlib is installed, growth.png
into DIR. `nvlm-trt bench --scenario growth` does the same for tokens, tiles and streams.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nvlm_trt.bench.fit import fit_power_law
from nvlm_trt.bench.machine import this_machine
from nvlm_trt.bench.quiet import ForeignLoad
from nvlm_trt.bench.show.canvas import canvas, png
from nvlm_trt.bench.show.markdown import number
from nvlm_trt.model.synthetic import tiny_spec, write_synthetic
from nvlm_trt.pipeline.manifest import load_manifest

ROOT = Path(__file__).parents[1]
STAGES = ("vision-export", "decoder-convert")
WIDE = {"hidden_size": 512, "intermediate_size": 1536, "heads": 8, "kv_heads": 8, "vision_heads": 16, "tile_size": 112}
"""Shapes beside the layers: some 9 MB a layer, heads enough for 8 ranks."""

COSTS = {"seconds": "s", "memory": "MiB"}


@dataclass(frozen=True, slots=True)
class Curve:
    """One cost of one stage over one axis.

    Attributes:
        stage: Of the build.
        axis: "layers" or "ranks".
        cost: "seconds" (wall time) or "memory" (peak resident memory in MiB).
        sizes: Ascending.
        medians: Of all rounds.
        exponent: Of the fitted power law: 1 is linear, 0 flat.
        residual: Root mean square of ln(cost / fitted cost).
    """

    stage: str
    axis: str
    cost: str
    sizes: tuple[int, ...]
    medians: tuple[float, ...]
    exponent: float
    residual: float


def main() -> int:
    """Build, fit, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoints and the tables")
    parser.add_argument("--layers", type=_sizes, default=(8, 16, 32, 64))
    parser.add_argument("--ranks", type=_sizes, default=(1, 2, 4, 8), help="divisors of 8")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    work: Path = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    cells = list(
        dict.fromkeys([(count, 1) for count in options.layers] + [(options.layers[0], r) for r in options.ranks])
    )
    measured: dict[tuple[int, int], list[dict[str, dict[str, float]]]] = {cell: [] for cell in cells}
    with ForeignLoad() as others:
        for round_number in range(options.rounds):
            for layers, ranks in cells:
                print(f"round {round_number + 1}: {layers} layers, {ranks} ranks", file=sys.stderr, flush=True)
                measured[layers, ranks].append(_build(work, layers, ranks))
    curves = [
        *_curves("layers", {layers: measured[layers, 1] for layers in options.layers}),
        *_curves("ranks", {ranks: measured[options.layers[0], ranks] for ranks in options.ranks}),
    ]
    facts = {"machine": this_machine().model_dump(), "others_cores": round(others.cores, 2), "rounds": options.rounds}
    (work / "growth.json").write_text(
        json.dumps({**facts, "curves": [asdict(each) for each in curves]}, indent=1) + "\n"
    )
    (work / "growth.md").write_text(_table(curves, others.cores))
    if find_spec("matplotlib") is not None:
        (work / "growth.png").write_bytes(_plot(curves))
    print((work / "growth.md").read_text())
    return 0


def _sizes(words: str) -> tuple[int, ...]:
    return tuple(sorted({int(word) for word in words.split(",")}))


def _build(work: Path, layers: int, ranks: int) -> dict[str, dict[str, float]]:
    """Seconds and MiB of each stage of one build."""
    checkpoint, recipe = work / f"checkpoint-{layers}", work / f"tp{ranks}.yaml"
    if not checkpoint.exists():
        spec = tiny_spec(vision_layers=layers, decoder_layers=layers, max_shard_bytes=100_000_000, **WIDE)
        write_synthetic(checkpoint, spec)
    recipe.write_text(f"target: gpu\ntp: {ranks}\nvision_precision: bf16\ndecoder_precision: bf16\n")
    os.sync()  # what was written before shall not be written in the seconds of this build
    with tempfile.TemporaryDirectory(prefix="engine-", dir=work) as engine:
        command = ["build", recipe, "--checkpoint", checkpoint, "--output", engine, "--until", STAGES[-1], "--quiet"]
        subprocess.run(
            [sys.executable, "-m", "nvlm_trt.cli.main", *map(str, command)],
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        records = load_manifest(Path(engine)).stages
    return {
        name: {"seconds": records[name].seconds, "memory": records[name].peak_memory_bytes / 2**20} for name in STAGES
    }


def _curves(axis: str, measured: dict[int, list[dict[str, dict[str, float]]]]) -> list[Curve]:
    found = []
    for stage in STAGES:
        for cost in COSTS:
            middles = [statistics.median(done[stage][cost] for done in rounds) for rounds in measured.values()]
            law = fit_power_law(list(measured), middles)
            found.append(Curve(stage, axis, cost, tuple(measured), tuple(middles), law.exponent, law.residual))
    return found


def _table(curves: list[Curve], others: float) -> str:
    """A row a curve."""
    lines = [
        f"Other work kept {others:.1f} cores busy. Cost = factor x size ^ exponent, least squares of the logarithms of "
        "medians; the residual is the root mean square of ln(cost / fitted cost).",
        "",
        "| stage | over | cost | medians | exponent | residual |",
        "|---|---|---|---|---|---|",
    ]
    for each in curves:
        points = ", ".join(f"{size}: {number(cost)}" for size, cost in zip(each.sizes, each.medians, strict=True))
        cost = f"{each.cost} [{COSTS[each.cost]}]"
        lines.append(f"| {each.stage} | {each.axis} | {cost} | {points} | {each.exponent:.2f} | {each.residual:.2f} |")
    return "\n".join(lines) + "\n"


def _plot(curves: list[Curve]) -> bytes:
    """A panel for each axis and cost, sizes and seconds on logarithmic scales, with the fitted lines."""
    panels = list(dict.fromkeys((each.axis, each.cost) for each in curves))
    figure: Any = canvas(9, 3.5 * -(-len(panels) // 2))
    for index, (axis, cost) in enumerate(panels, start=1):
        axes = figure.add_subplot(-(-len(panels) // 2), 2, index)
        for place, each in enumerate(each for each in curves if (each.axis, each.cost) == (axis, cost)):
            law = fit_power_law(each.sizes, each.medians)
            axes.plot(each.sizes, each.medians, "o", color=f"C{place}")
            label = f"{each.stage}: exponent {each.exponent:.2f}"
            axes.plot(each.sizes, [law(size) for size in each.sizes], "--", color=f"C{place}", label=label)
            axes.set_xscale("log", base=2)
            axes.set_xticks(each.sizes, [str(size) for size in each.sizes])
        if cost == "memory":  # a flat curve shall look flat
            axes.set_ylim(0, 1.3 * max(max(each.medians) for each in curves if each.cost == cost))
        else:
            axes.set_yscale("log")
        axes.set_title(f"{cost} [{COSTS[cost]}]", fontsize=9)
        axes.set_xlabel(axis)
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    return png(figure)


if __name__ == "__main__":
    sys.exit(main())

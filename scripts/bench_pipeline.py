"""Speed and memory of the stages that move weights, beside `cp` of what they write.

    python scripts/bench_pipeline.py FOLDER [--layers 2] [--vocab 8192] [--rounds 3] [--no-digest]
        [--part NAME ...]

Makes a random checkpoint at the widths of NVLM-D-72B in FOLDER, with a small vocabulary so that layers dominate, and
leaves it to later runs. In a round every part is run in a process of its own, in a new folder inside FOLDER, and then
what it wrote is copied with `cp`; the folder is removed. Every file is synced before the clock stops, on both sides.
The page cache is left as it is (dropping it takes root): `cp` reads what was written just before it, so of the two it
is `cp` that reads from memory. Nothing else waits to be written when a clock starts.
Prints, as medians of the rounds: bytes, GB/s, ratio to `cp` (and its least and largest), processor seconds (user +
system) of both, bytes read for each byte of the source tensors, peak memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from nvlm_trt.decoder.convert import convert_decoder
from nvlm_trt.decoder.precision import Precision, decoder_precision
from nvlm_trt.decoder.quantize_scales import layer_file, needed_results
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.config import DecoderConfig
from nvlm_trt.model.synthetic import like_72b, write_synthetic
from nvlm_trt.vision.export import export_vision

PRECISIONS = {"convert": "bf16", "fp8": "fp8", "int8": "int8_sq"}
PARTS = ("vision-export", "convert-tp1", "convert-tp4", "convert-tp8", "fp8-tp4", "int8-tp4")


def main() -> None:
    """Run the rounds, or (with --child) one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-digest", action="store_true", help="as cp, which computes none; a build takes them all")
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--child", nargs=2, metavar=("PART", "OUT"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    checkpoint = asked.folder / f"checkpoint-{asked.layers}-{asked.vocab}"
    if asked.child:
        part, out = asked.child
        print(json.dumps(run_part(part, checkpoint, Path(out), with_digest=not asked.no_digest)))
        return
    if not checkpoint.exists():
        make_checkpoint(checkpoint, asked.layers, asked.vocab)
    words = [str(asked.folder), "--layers", str(asked.layers), "--vocab", str(asked.vocab)]
    words += ["--no-digest"] if asked.no_digest else []
    rounds: dict[str, list[Mapping[str, float]]] = {part: [] for part in asked.part or PARTS}
    print(f"{asked.layers} layers, vocabulary {asked.vocab}; load {Path('/proc/loadavg').read_text().strip()}")
    for _ in range(asked.rounds):
        for part, figures in rounds.items():
            figures.append(one_round(part, words, asked.folder))
    for part, figures in rounds.items():
        print(shown(part, figures))


def make_checkpoint(out: Path, layers: int, vocab: int) -> None:
    """Random weights at the widths of the 72B model."""
    spec = like_72b(layers)
    decoder = dataclasses.replace(spec.config.decoder, vocab_size=vocab)
    write_synthetic(out, dataclasses.replace(spec, config=dataclasses.replace(spec.config, decoder=decoder)))


def run_part(part: str, checkpoint_dir: Path, out: Path, *, with_digest: bool) -> dict[str, float]:
    """Run one part in this process: its seconds, processor seconds, bytes read and peak memory."""
    out.mkdir()
    checkpoint = Checkpoint.open(checkpoint_dir)
    kind, _, ranks = part.partition("-tp")
    is_vision = part == "vision-export"
    sources = [each.nbytes for name, each in checkpoint.tensors.items() if name.startswith("language") != is_vision]
    read, used, began = bytes_read(), processor_seconds(), time.monotonic()
    told = (lambda _path, _value: None) if with_digest else None
    if is_vision:
        export_vision(checkpoint, out, precision="bf16", output_dtype="bf16", digested=told)
    else:
        precision = decoder_precision(PRECISIONS[kind])
        convert_decoder(
            checkpoint,
            out,
            tp=int(ranks),
            pp=1,
            precision=precision,
            calibration=scales_for(checkpoint.config.decoder, precision, out.with_name("scales")),
            digested=told,
        )
    return {
        "seconds": time.monotonic() - began,
        "processor": processor_seconds() - used,
        "read": (bytes_read() - read) / sum(sources),
        "peak": peak_bytes(),
    }


def scales_for(decoder: DecoderConfig, precision: Precision, out: Path) -> Path:
    """Made-up results of a calibration: they decide values, and no speed."""
    out.mkdir()
    values = {name: torch.full(shape, 8.0) for name, shape in needed_results(decoder, precision).items()}
    for index in range(decoder.num_layers):
        save_file(values, out / layer_file(index))
    return out


def one_round(part: str, words: list[str], folder: Path) -> dict[str, float]:
    """A part in a process of its own, then `cp` of its files; both in a folder that is there for this round alone."""
    os.sync()
    with tempfile.TemporaryDirectory(prefix="round-", dir=folder) as work:
        out, copy = Path(work, "out"), Path(work, "copy")
        child = [sys.executable, __file__, *words, "--child", part, str(out)]
        calm = {**os.environ, "OMP_WAIT_POLICY": "passive"}  # as `nvlm-trt build` has it
        done = subprocess.run(child, check=True, capture_output=True, text=True, env=calm)
        figures: dict[str, float] = json.loads(done.stdout)
        os.sync()
        used, began = processor_seconds(resource.RUSAGE_CHILDREN), time.monotonic()
        subprocess.run(["cp", "-r", out, copy], check=True)
        for path in copy.iterdir():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        figures["cp seconds"] = time.monotonic() - began
        figures["cp processor"] = processor_seconds(resource.RUSAGE_CHILDREN) - used
        figures["bytes"] = sum(path.stat().st_size for path in out.iterdir())
        figures["ratio"] = figures["cp seconds"] / figures["seconds"]
    return figures


def shown(part: str, rounds: Sequence[Mapping[str, float]]) -> str:
    """One line of the table."""
    median = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
    ratios = [each["ratio"] for each in rounds]
    size = median["bytes"] / 1e9
    return (
        f"{part:14} {size:5.1f} GB  {size / median['seconds']:.2f} GB/s, cp {size / median['cp seconds']:.2f}, "
        f"ratio {median['ratio']:.2f} ({min(ratios):.2f} to {max(ratios):.2f})  "
        f"processor {median['processor']:5.1f} s, cp {median['cp processor']:.1f} s  "
        f"read {median['read']:.3f} of the source  peak {median['peak'] / 2**20:.0f} MiB"
    )


def processor_seconds(who: int = resource.RUSAGE_SELF) -> float:
    """User and system time so far."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def bytes_read() -> int:
    """Bytes that this process has asked the kernel for."""
    return _figure("io", r"rchar: (\d+)")


def peak_bytes() -> int:
    """Peak of resident memory, libraries included."""
    return _figure("status", r"VmHWM:\s+(\d+) kB") * 1024


def _figure(file: str, pattern: str) -> int:
    found = re.search(pattern, Path("/proc/self", file).read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1])


if __name__ == "__main__":
    main()

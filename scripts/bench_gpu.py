"""What a GPU does with parts of NVLM-D at their true widths, before there is an engine: for docs/gpu-measurements.md.

    python scripts/bench_gpu.py OUT --gpu h100-sxm [--layers 4] [--tp 1 4] [--parts vision products calibration]
    python scripts/bench_gpu.py OUT --device cpu --tiny        every step once, anywhere; its figures mean nothing

Writes OUT/bench_gpu.json and OUT/bench_gpu.md: the vision encoder (torch reference, and the ONNX graph in onnxruntime),
BF16, FP8 and INT8 matrix products at every shape of NVLM-D-72B, and the streamed calibration of the decoder. With a GPU
model of `nvlm-trt plan` it also gives shares of its datasheet, and `corrections` to put into that model's YAML file.

Needs torch with CUDA, and onnxruntime-gpu for the graph (the report says where the graph did not run, and why). A
random checkpoint of --layers vision and decoder layers (4: 15 GB) is made in a new folder inside OUT that is removed
again, or --checkpoint DIR is used.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nvlm_trt.calibration.prompts import build_prompts
from nvlm_trt.calibration.samples import SHIPPED_SAMPLES, read_samples
from nvlm_trt.datasheets.datasheet import Corrections, Datasheet, known_gpus, load_gpu
from nvlm_trt.decoder.calibrate import CalibrationSettings, calibrate_decoder
from nvlm_trt.decoder.precision import decoder_precision
from nvlm_trt.errors import NvlmTrtError, UserError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.config import NvlmConfig
from nvlm_trt.model.reference.layer_stream import weight_bytes
from nvlm_trt.model.reference.vision import VisionReference, normalise, pixel_shuffle
from nvlm_trt.model.synthetic import like_72b, tiny_spec, write_synthetic
from nvlm_trt.model.tensors import PROJECTOR_PREFIX, VISION_PREFIX, decoder_layer
from nvlm_trt.model.tokenizer import NvlmTokenizer
from nvlm_trt.plan.flops import layer_elements, vision_flops_per_tile
from nvlm_trt.vision.export import export_vision

PARTS = ("vision", "products", "calibration")
TILES = (1, 7, 14)
BATCHES = tuple(1 << power for power in range(10))
CALIBRATED = ("fp8", "int8_sq", "int4_awq")
DECODER = ("decoder qkv", "decoder dense", "decoder fc+gate", "decoder proj")

PRECISIONS = {"bf16": (torch.bfloat16, 1), "fp8": (torch.float8_e4m3fn, 16), "int8": (torch.int8, 32)}
"""Of matrix products, and what rows are filled up to a multiple of: cuBLAS asks for 16 in fp8, for over 16 in int8."""

Row = dict[str, Any]
Tiles = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Run:
    """How to measure.

    Attributes:
        device: Where torch works.
        gpu: The datasheet to compare with; None for none, as on the CPU.
        seconds: For how long a call is repeated, at least.
        calls: Matrix products between two looks at the clock, so that their launches don't count.
        cold: Weights of a product are taken in turn from copies of so many bytes in all: more than caches hold.
    """

    device: torch.device
    gpu: Datasheet | None
    seconds: float = 0.3
    calls: int = 20
    cold: int = 1 << 29

    @property
    def on_gpu(self) -> bool:
        """Whether figures are those of a GPU."""
        return self.device.type == "cuda"

    def time(self, call: Callable[[], object], calls: int = 1) -> float:
        """Median seconds of a call until the device has nothing left to do, after three that do not count."""
        taken: list[float] = []
        while calls * sum(taken[3:]) < self.seconds or len(taken) < 6:
            begun = time.perf_counter()
            for _ in range(calls):
                call()
            if self.on_gpu:
                torch.cuda.synchronize(self.device)
            taken.append((time.perf_counter() - begun) / calls)
        return statistics.median(taken[3:])

    def share(self, flops_per_s: float, precision: str) -> float | None:
        """Of the datasheet's peak; None without a datasheet, or without such a type in it."""
        try:
            return None if self.gpu is None else flops_per_s / self.gpu.peak(precision)
        except UserError:
            return None


@dataclass(frozen=True, slots=True)
class Encoder:
    """One way to run the vision encoder.

    Attributes:
        what: Which.
        dummy_heads: Heads that it computes besides the real ones.
        encode: Tiles, uint8 [n, s, s, 3], to something that stays on the device.
        rows: Of that the prompt table's rows, float32 on the CPU.
    """

    what: str
    dummy_heads: int
    encode: Callable[[Tiles], Any]
    rows: Callable[[Any], torch.Tensor]


def vision_rows(run: Run, checkpoint: Checkpoint, work: Path) -> Iterator[Row]:
    """The torch reference and the ONNX graph, in fp32 and bf16."""
    side = checkpoint.config.tile_size
    tiles = np.random.default_rng(0).integers(0, 256, (max(TILES), side, side, 3), np.uint8)
    reference = torch_encoder(run, checkpoint, "fp32", work)
    exact = reference.rows(reference.encode(tiles[:1]))
    for precision in ("fp32", "bf16"):
        for make in (torch_encoder, graph_encoder):
            try:
                encoder = make(run, checkpoint, precision, work)
                yield from _encoder_rows(run, checkpoint.config, encoder, precision, tiles, exact)
            except Exception as error:  # onnxruntime has no common error, and what it lacks is a finding
                yield {"what": make.__name__, "precision": precision, "not_run": _first_line(error)}


def torch_encoder(run: Run, checkpoint: Checkpoint, precision: str, _work: Path) -> Encoder:
    """The released arithmetic, dummy heads included."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    names = (name for name in checkpoint.tensors if name.startswith((VISION_PREFIX, PROJECTOR_PREFIX)))
    weights = {name: checkpoint.read(name, dtype).to(run.device) for name in names}
    reference = VisionReference(checkpoint, dtype, weights=weights)

    def encode(tiles: Tiles) -> torch.Tensor:
        with torch.inference_mode():
            hidden = reference.embed(normalise(tiles).to(run.device, dtype))
            for index in range(checkpoint.config.vision.num_layers):
                hidden = reference.block(index, hidden)
            return reference.project(pixel_shuffle(hidden[:, 1:], checkpoint.config.shuffle))

    return Encoder("torch reference", checkpoint.dummy_heads, encode, lambda rows: rows.float().cpu())


def graph_encoder(run: Run, checkpoint: Checkpoint, precision: str, work: Path) -> Encoder:
    """The exported graph in onnxruntime, all of it on the device."""
    import onnxruntime

    (out := work / f"onnx-{precision}").mkdir(exist_ok=True)
    export_vision(checkpoint, out, precision=precision, output_dtype="fp32")
    place = "CUDAExecutionProvider" if run.on_gpu else "CPUExecutionProvider"
    session = onnxruntime.InferenceSession(str(out / "vision.onnx"), providers=[place])
    if session.get_providers()[0] != place:
        raise UserError("onnxruntime does not run on the device", seen=session.get_providers()[0], expected=place)
    tensor, rows = session.get_inputs()[0].name, session.get_outputs()[0].name

    def encode(tiles: Tiles) -> Any:
        binding = session.io_binding()
        binding.bind_ortvalue_input(tensor, onnxruntime.OrtValue.ortvalue_from_numpy(tiles, run.device.type, 0))
        binding.bind_output(rows, run.device.type)
        session.run_with_iobinding(binding)
        return binding

    return Encoder("ONNX graph", 0, encode, lambda binding: torch.from_numpy(binding.copy_outputs_to_cpu()[0]))


def _encoder_rows(
    run: Run, config: NvlmConfig, encoder: Encoder, precision: str, tiles: Tiles, exact: torch.Tensor
) -> Iterator[Row]:
    flops = vision_flops_per_tile(config, encoder.dummy_heads)
    error = encoder.rows(encoder.encode(tiles[:1])) - exact
    for count in TILES:
        seconds = run.time(lambda: encoder.encode(tiles[:count]))  # noqa: B023 - called at once
        yield {
            "what": encoder.what,
            "precision": precision,
            "layers": config.vision.num_layers,
            "tiles": count,
            "ms": seconds * 1e3,
            "tiles_per_s": count / seconds,
            "tflops": count * flops / seconds / 1e12,
            "share_of_peak": run.share(count * flops / seconds, precision),
            "relative_error": float(error.norm() / exact.norm()),
        }


def shapes_of(config: NvlmConfig, tp: int) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of every kind of matrix on one of `tp` ranks; those of the vision encoder at tp 1 only."""
    vision, decoder = config.vision, config.decoder
    queries, keys = decoder.query_width // tp, max(decoder.num_kv_heads // tp, 1) * decoder.head_dim
    hidden, wide = decoder.hidden_size, decoder.intermediate_size // tp
    sizes = ((queries + 2 * keys, hidden), (hidden, queries), (2 * wide, hidden), (hidden, wide))
    split = {**dict(zip(DECODER, sizes, strict=True)), "decoder lm_head": (decoder.vocab_size // tp, hidden)}
    whole = {
        "vision qkv": (3 * vision.hidden_size, vision.hidden_size),
        "vision proj": (vision.hidden_size, vision.hidden_size),
        "vision fc1": (vision.intermediate_size, vision.hidden_size),
        "vision fc2": (vision.hidden_size, vision.intermediate_size),
        "projector fc1": (config.projector_hidden, config.projector_in),
        "projector fc2": (hidden, config.projector_hidden),
    }
    return {**whole, **split} if tp == 1 else split


def product_rows(run: Run, config: NvlmConfig, tps: Sequence[int], batches: Sequence[int]) -> Iterator[Row]:
    """Every shape in every precision at every batch; both factors are quantised beforehand."""
    for tp in tps:
        for matrix, shape in shapes_of(config, tp).items():
            for precision in PRECISIONS:
                base = {"tp": tp, "matrix": matrix, "outputs": shape[0], "inputs": shape[1], "precision": precision}
                try:
                    yield from (base | row for row in _batch_rows(run, precision, shape, batches))
                except (RuntimeError, NotImplementedError) as error:
                    yield base | {"not_run": _first_line(error)}


def _batch_rows(run: Run, precision: str, shape: tuple[int, int], batches: Sequence[int]) -> Iterator[Row]:
    dtype, multiple = PRECISIONS[precision]
    outputs, inputs = shape
    size = outputs * inputs * dtype.itemsize
    weights = [_random(shape, dtype, run.device) for _ in range(max(2, -(-run.cold // size)))]
    place = 0

    def once() -> None:
        nonlocal place
        place = (place + 1) % len(weights)
        multiply(x, weights[place])

    for batch in batches:
        x = _random((-(-batch // multiple) * multiple, inputs), dtype, run.device)
        seconds = run.time(once, run.calls)
        rate = 2 * batch * outputs * inputs / seconds
        yield {
            "batch": batch,
            "us": seconds * 1e6,
            "tflops": rate / 1e12,
            "share_of_peak": run.share(rate, precision),
            "weight_gb_per_s": size / seconds / 1e9,
        }


def multiply(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """By cuBLAS x @ weight^T: bfloat16 out of bfloat16 and e4m3 (a scale a tensor), int32 out of int8."""
    if x.dtype == torch.int8:
        return torch._int_mm(x, weight.t())
    if x.dtype == torch.float8_e4m3fn:
        one = torch.ones((), device=x.device)
        return torch._scaled_mm(x, weight.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    return torch.nn.functional.linear(x, weight)


def _random(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return (torch.randn(shape, device=device) * (40 if dtype == torch.int8 else 1)).to(dtype)


def calibration_rows(run: Run, checkpoint: Checkpoint, work: Path, count: int) -> Iterator[Row]:
    """The decoder's layers, one after the other, on the first of the project's samples that have no images."""
    samples = [sample for sample in read_samples(SHIPPED_SAMPLES) if not sample.images][:count]
    tokenizer = NvlmTokenizer.load(checkpoint.path)
    prompts = build_prompts(samples, tokenizer, checkpoint.config, max_tokens=2048, max_tiles=6)
    settings = CalibrationSettings(device="cuda" if run.on_gpu else "cpu")
    layers = checkpoint.config.decoder.num_layers
    for name in CALIBRATED:
        if run.on_gpu:
            torch.cuda.reset_peak_memory_stats(run.device)
        out, own = work / f"calibration-{name}", work / f"calibration-{name}.work"
        begun = time.perf_counter()
        calibrate_decoder(checkpoint, prompts, out, own, precision=decoder_precision(name), settings=settings)
        yield {
            "precision": name,
            "layers": layers,
            "layer_gb": weight_bytes(checkpoint, decoder_layer(0)) / 1e9,
            "tokens": sum(len(prompt.ids) for prompt in prompts),
            "s_per_layer": (time.perf_counter() - begun) / layers,
            "peak_gpu_gb": torch.cuda.max_memory_allocated(run.device) / 1e9 if run.on_gpu else None,
        }


def corrections(parts: dict[str, list[Row]], config: NvlmConfig, gpu: Datasheet, label: str) -> Corrections:
    """Shares for `nvlm-trt plan`: of torch, onnxruntime and cuBLAS in bf16, not of an engine, and their sources say so.

    Args:
        parts: Rows of what was measured.
        config: Shapes of the matrix products.
        gpu: The datasheet that they are shares of.
        label: The GPU, the software and the day.
    """
    found: dict[str, Row] = {}
    tiles = [row for row in parts.get("vision", []) if row["precision"] == "bf16" and row.get("share_of_peak")]
    if tiles:
        best = max(tiles, key=lambda row: row["share_of_peak"])
        source = f"{best['what']} in bf16, {best['tiles']} tiles, {best['layers']} layers; {label}"
        found["vision_share_of_peak"] = {"value": best["share_of_peak"], "source": source}
    taken: dict[int, float] = {}
    for row in parts.get("products", []):
        if (row["tp"], row["precision"]) == (1, "bf16") and row["matrix"] in DECODER and "batch" in row:
            taken[row["batch"]] = taken.get(row["batch"], 0.0) + row["us"] * 1e-6
    if taken:
        elements, least, most = layer_elements(config.decoder), min(taken), max(taken)
        words = "matrix products of a decoder layer alone, bf16, rows:"
        prefill, decode = 2 * most * elements / taken[most], 2 * elements / taken[least]
        found["prefill_share_of_peak"] = {"value": prefill / gpu.peak("bf16"), "source": f"{words} {most}; {label}"}
        found["decode_share_of_bandwidth"] = {"value": decode / gpu.bandwidth, "source": f"{words} {least}; {label}"}
    return Corrections.model_validate(found)


def markdown(report: dict[str, Any]) -> str:
    """The report as a page; the corrections as YAML."""
    lines = ["# Measured with scripts/bench_gpu.py", ""]
    lines += [f"- {name}: {value}" for name, value in report["machine"].items()]
    for part, rows in report["parts"].items():
        columns = list(dict.fromkeys(name for row in rows for name in row))
        lines += ["", f"## {part}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        lines += [f"| {' | '.join(_cell(row.get(name)) for name in columns)} |" for row in rows]
    if report["corrections"]:
        lines += ["", "## corrections", "", "    corrections:"]
        lines += [f"      {name}: {json.dumps(each)}" for name, each in report["corrections"].items()]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"[:200]


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for the report")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--gpu", help=f"its datasheet: {', '.join(known_gpus())}, or a YAML file like theirs")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, each call three times")
    parser.add_argument("--layers", type=int, default=4, help="vision and decoder layers of the random checkpoint")
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint in its place")
    parser.add_argument("--tp", type=int, nargs="+", default=[1, 4], help="ranks that matrices are split over")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    return parser.parse_args(words)


def _machine(device: torch.device) -> dict[str, Any]:
    """What the figures are of."""
    found = {each.metadata["Name"]: each.version for each in metadata.distributions()}
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})",
        "date": datetime.now(UTC).date().isoformat(),
        "cuda": torch.version.cuda,
        **{name: found[name] for name in ("torch", "onnxruntime-gpu", "onnxruntime") if name in found},
    }


def main(words: Sequence[str] | None = None) -> None:
    """Measure; the report is written again after every part."""
    options = _options(words)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch sees no GPU", seen=torch.__version__, fix="use --device cpu --tiny to try the script")
    device = torch.device(options.device)
    gpu = load_gpu(options.gpu) if options.gpu and options.device == "cuda" else None
    run = Run(device, gpu, seconds=0.0, calls=1, cold=0) if options.tiny else Run(device, gpu)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="work-", dir=options.out) as work:
        _report(options, run, Path(work))


def _report(options: argparse.Namespace, run: Run, work: Path) -> None:
    """Measure what is asked for; whatever else has to be written goes into `work`."""
    if options.checkpoint is None:
        write_synthetic(work / "checkpoint", tiny_spec(tile_size=56) if options.tiny else like_72b(options.layers))
    checkpoint = Checkpoint.open(options.checkpoint or work / "checkpoint")
    measures: dict[str, Callable[[], Iterator[Row]]] = {
        "vision": lambda: vision_rows(run, checkpoint, work),
        "products": lambda: product_rows(run, checkpoint.config, options.tp, BATCHES[:: 4 if options.tiny else 1]),
        "calibration": lambda: calibration_rows(run, checkpoint, work, 2 if options.tiny else 16),
    }
    machine = _machine(run.device)
    report: dict[str, Any] = {"machine": machine, "parts": {}, "corrections": {}}
    for name in options.parts:
        print(f"{name} ...", file=sys.stderr)
        report["parts"][name] = list(measures[name]())
        if run.gpu is not None:
            label = f"{machine['device']}, torch {machine['torch']}, {machine['date']}, scripts/bench_gpu.py"
            applied = corrections(report["parts"], checkpoint.config, run.gpu, label).applied()
            report["corrections"] = {key: each.model_dump() for key, each in applied.items()}
        (options.out / "bench_gpu.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (options.out / "bench_gpu.md").write_text(markdown(report), encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except NvlmTrtError as error:
        sys.exit(f"error: {error}")

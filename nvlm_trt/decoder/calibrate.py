"""Calibrate the decoder: run samples through it layer by layer and write what quantisation needs to know of each layer.

One layer is in memory at a time; hidden states of all samples lie on disk. A run that was killed goes on after the last
finished layer and ends with the bytes of an undisturbed one (on the same kind of device, with as many threads).
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch

from nvlm_trt.calibration.device import calibration_device, give_back_memory
from nvlm_trt.calibration.prompts import CalibrationPrompt, PromptTiles
from nvlm_trt.decoder.calibration_files import Report, publish, write_results
from nvlm_trt.decoder.calibration_layer import LINEARS, DecoderLayer
from nvlm_trt.decoder.calibration_search import Awq, Scheme, SmoothQuant, search_prequant, smoothed_amax
from nvlm_trt.decoder.calibration_statistics import InputStatistics, LayerStatistics
from nvlm_trt.decoder.precision import Precision, QuantAlgo
from nvlm_trt.decoder.quantize_scales import layer_file
from nvlm_trt.errors import CheckpointError, UserError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.config import NvlmConfig
from nvlm_trt.model.reference import vision_stream
from nvlm_trt.model.reference.layer_stream import (
    HiddenStates,
    checkpoint_key,
    read_weights,
    stream_layers,
    weight_bytes,
)
from nvlm_trt.model.reference.vision_stream import stream_vision, streamed_bytes
from nvlm_trt.model.tensors import DECODER_EMBEDDING, decoder_layer, decoder_tensors
from nvlm_trt.progress import Log, Progress

BASE_BYTES = 1 << 30
"""What Python, torch and the figures of the search take beside weights and activations."""


@dataclass(frozen=True, slots=True)
class CalibrationSettings:
    """How to calibrate.

    Attributes:
        device: Where layers are run: "auto" is a GPU if torch sees one, else the CPU.
        rows: Inputs of each linear layer that factors are searched on, spread evenly over all tokens.
        alpha_step: Step of the grid of strengths from 0 to 1.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    rows: int = 512
    alpha_step: float = 0.1

    @property
    def alphas(self) -> tuple[float, ...]:
        """The grid, 0 and 1 included."""
        steps = max(1, round(1 / self.alpha_step))
        return tuple(step / steps for step in range(steps + 1))


def calibrate_decoder(
    checkpoint: Checkpoint,
    prompts: Sequence[CalibrationPrompt],
    out_dir: Path,
    work_dir: Path,
    *,
    precision: Precision,
    settings: CalibrationSettings | None = None,
    progress: Progress | None = None,
    log: Log | None = None,
) -> None:
    """Write one file of results a decoder layer and then, atomically, config.json.

    As long as config.json is absent, `out_dir` is incomplete.

    Args:
        checkpoint: The model; its values are rounded to bfloat16 (the release stores q, k and v in float32).
        prompts: The samples.
        out_dir: Where the results go; made if it is missing, results of an earlier calibration are replaced.
        work_dir: A folder that only this calibration uses, for what it needs to go on after a kill: twice the hidden
            states of all samples (see `work_bytes`) and the layers' results. The caller removes it.
        precision: What the decoder shall be converted to.
        settings: How to calibrate.
        progress: Told bytes of weights that all samples have passed, and in all.
        log: Told one line a layer.

    Raises:
        UserError: there are no samples, or the device is not there.
        ImageRejected: an image of a sample can no longer be read.
        CheckpointError: a tensor cannot be read, or the model's values are not finite.
    """
    settings = settings or CalibrationSettings()
    if not prompts:
        raise UserError("there are no samples to calibrate on")
    device = calibration_device(settings.device)
    record = _record(checkpoint, prompts, precision, settings, device)
    decoder = checkpoint.config.decoder
    shapes = [(len(prompt.ids), decoder.hidden_size) for prompt in prompts]
    states = HiddenStates(work_dir, f"{json.dumps(record)} {checkpoint_key(checkpoint)}", shapes)
    sizes = [weight_bytes(checkpoint, decoder_layer(index)) for index in range(decoder.num_layers)]
    vision_bytes = streamed_bytes(checkpoint) if any(prompt.num_tiles for prompt in prompts) else 0
    total = vision_bytes + sum(sizes)

    def told(done: int, _: int) -> None:
        if progress is not None:
            progress(done, total)

    run = _Run(checkpoint, precision, settings, device, sum(length for length, _ in shapes), work_dir, log)
    with torch.inference_mode():
        states.begin(_embedded(checkpoint, prompts, work_dir / "vision", device, told))
        shutil.rmtree(work_dir / "vision", ignore_errors=True)
        stream_layers(states, sizes, run.open_layer, lambda done, _: told(vision_bytes + done, total))
    give_back_memory(device)
    told(total, total)
    publish(work_dir, out_dir, decoder.num_layers, record)


def work_bytes(config: NvlmConfig, tokens: int) -> int:
    """Bytes on disk that calibrating with so many tokens, visual ones included, needs at most while it runs."""
    states = 2 * tokens * config.decoder.hidden_size
    tiles = -(-tokens // config.tokens_per_tile)
    return states + max(states, vision_stream.work_bytes(config, tiles))


def peak_bytes(config: NvlmConfig, max_tokens: int) -> int:
    """Bytes of memory that calibrating needs at most, with samples of up to so many tokens, whatever the layers.

    Of NVLM-D-72B with 2,048 tokens 4.8 GiB; 3.4 GiB were measured with INT4-AWQ, of which 1.6 are the mapped weights.
    """
    prefix = decoder_layer(0)
    layer = sum(math.prod(shape) for name, shape in decoder_tensors(config).items() if name.startswith(prefix))
    activations = 8 * max_tokens * config.decoder.intermediate_size
    return max(4 * layer + activations, vision_stream.peak_bytes(config)) + BASE_BYTES


def _record(
    checkpoint: Checkpoint,
    prompts: Sequence[CalibrationPrompt],
    precision: Precision,
    settings: CalibrationSettings,
    device: torch.device,
) -> dict[str, object]:
    """What the results depend on, beside the checkpoint: the first part of config.json."""
    vocab_size = checkpoint.config.decoder.vocab_size
    return {
        "quantization": precision.quantization.to_dict(),
        "num_hidden_layers": checkpoint.config.decoder.num_layers,
        "arithmetic": "bfloat16",
        "settings": {**asdict(settings), "device": device.type},
        "torch": version("torch"),
        "tokens": sum(len(prompt.ids) for prompt in prompts),
        "samples": [
            {
                "sha256": prompt.digest,
                "tokens": len(prompt.ids),
                "visual_tokens": int((prompt.ids >= vocab_size).sum()),
                "tiles": prompt.num_tiles,
            }
            for prompt in prompts
        ],
    }


def _embedded(
    checkpoint: Checkpoint, prompts: Sequence[CalibrationPrompt], work_dir: Path, device: torch.device, told: Progress
) -> Iterator[torch.Tensor]:
    """What enters layer 0: rows of the embedding, and of the prompt tables at visual positions."""
    tiles = PromptTiles(prompts)
    table = torch.empty(0, checkpoint.config.decoder.hidden_size)
    if len(tiles):
        work_dir.mkdir(parents=True, exist_ok=True)
        table = stream_vision(checkpoint, tiles, work_dir=work_dir, device=device, progress=told).flatten(0, 1)
    embedding = checkpoint.read(DECODER_EMBEDDING)  # mapped: only rows that are used are read from the disk
    first = 0
    for prompt in prompts:
        ids = torch.from_numpy(prompt.ids).long()
        visual = ids >= checkpoint.config.decoder.vocab_size
        hidden = embedding[ids.masked_fill(visual, 0)].bfloat16()
        hidden[visual] = table[first + ids[visual] - checkpoint.config.decoder.vocab_size].bfloat16()
        first += prompt.num_tiles * checkpoint.config.tokens_per_tile
        yield hidden


@dataclass(frozen=True, slots=True)
class _Run:
    """What all layers of a calibration have in common."""

    checkpoint: Checkpoint
    precision: Precision
    settings: CalibrationSettings
    device: torch.device
    tokens: int
    folder: Path
    log: Log | None

    def open_layer(self, index: int) -> _Layer:
        """Load a layer."""
        prefix = decoder_layer(index)
        weights = read_weights(self.checkpoint, prefix, torch.bfloat16, self.device)
        return _Layer(self, index, {name.removeprefix(prefix): tensor for name, tensor in weights.items()})


class _Layer:
    """One decoder layer: runs samples and gathers, then writes its results."""

    def __init__(self, run: _Run, index: int, weights: Mapping[str, torch.Tensor]) -> None:
        self._run = run
        self._index = index
        self._weights = weights
        self._statistics = LayerStatistics(run.tokens, run.settings.rows if _searches(run.precision) else 0)
        self._layer = DecoderLayer(run.checkpoint.config.decoder, weights, self._statistics.observe)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._layer(hidden.to(self._run.device)).cpu()

    def finish(self) -> None:
        """Write the layer's results to the work folder."""
        self._check_finite()
        tensors = {"kv.amax": self._statistics.kv_amax}
        report: Report = {}
        for name, inputs in self._statistics.inputs.items():
            weights = [self._weights[weight] for weight in LINEARS[name]]
            tensors[f"{name}.input_amax"] = inputs.amax.max().reshape(1)
            if self._run.precision.quantization.quant_algo == QuantAlgo.FP8:
                tensors[f"{name}.weight_amax"] = _largest(weights)
            if _searches(self._run.precision):
                found = search_prequant(self._scheme(inputs, weights), inputs, weights, self._run.settings.alphas)
                tensors[f"{name}.input_amax"] = smoothed_amax(inputs.amax, found.prequant)
                tensors[f"{name}.prequant"] = found.prequant
                report[name] = {"alpha": found.alpha, "error": found.error, "error_at_zero": found.error_at_zero}
        write_results(self._run.folder / layer_file(self._index), tensors, report)
        if self._run.log is not None:
            self._run.log(_line(self._index, report))

    def _scheme(self, inputs: InputStatistics, weights: Sequence[torch.Tensor]) -> Scheme:
        if self._run.precision.quantization.quant_algo == QuantAlgo.AWQ:
            return Awq(inputs, self._run.precision.group_size)
        return SmoothQuant(inputs, weights)

    def _check_finite(self) -> None:
        largest = {name: inputs.amax.max() for name, inputs in self._statistics.inputs.items()}
        for name, value in {**largest, "KV cache": self._statistics.kv_amax}.items():
            if not bool(value.isfinite()):
                raise CheckpointError(
                    "the decoder's values are not finite",
                    seen=f"{float(value)} in {name} of layer {self._index}",
                    fix="the checkpoint's tensors of this layer or an earlier one are damaged",
                )


def _searches(precision: Precision) -> bool:
    return precision.quantization.quant_algo in (QuantAlgo.SMOOTH_QUANT, QuantAlgo.AWQ)


def _largest(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """The largest absolute value in the weights, [1]."""
    extremes = torch.stack([extreme for weight in weights for extreme in weight.aminmax()])
    return extremes.abs().max().reshape(1)


def _line(index: int, report: Report) -> str:
    parts = [f"{name} alpha {one['alpha']:.2f} error {one['error']:.2e}" for name, one in report.items()]
    return f"layer {index}: " + (", ".join(parts) or "measured")

"""Convert the decoder of an NVLM-D checkpoint to a TensorRT-LLM checkpoint, streaming.

The ranks of a pipeline stage are written side by side, so that every source byte is read once (see encode). The next
block is read and quantised while one is written. Memory is a few blocks whatever the size of the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from nvlm_trt.decoder.precision import BF16, Precision
from nvlm_trt.decoder.trtllm_config import CONFIG_NAME, GPUS_PER_NODE, TrtllmConfig
from nvlm_trt.decoder.trtllm_layout import Parameter, Rank, rank_parameters
from nvlm_trt.errors import RecipeError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.config import DecoderConfig, NvlmConfig
from nvlm_trt.model.file_writer import Digested
from nvlm_trt.model.safetensors_stream import SafetensorsStream
from nvlm_trt.progress import Progress

if TYPE_CHECKING:  # names and sizes are asked for where nothing is converted, and torch takes a second to load
    from nvlm_trt.decoder.encode import Part
    from nvlm_trt.decoder.quantize_scales import CalibrationResults

RANK_FILE = re.compile(r"rank\d+\.safetensors")


def rank_file(index: int) -> str:
    """Name of the file of one rank."""
    return f"rank{index}.safetensors"


def converted_bytes(config: NvlmConfig, tp: int, pp: int, precision: Precision = BF16) -> int:
    """Bytes of all tensors of the converted checkpoint (headers, some 100 bytes a tensor, are not counted).

    Args:
        config: The source's configuration.
        tp: Ranks that share each layer.
        pp: Pipeline stages.
        precision: As for `convert_decoder`.

    Raises:
        RecipeError: the shapes do not allow this tp and pp at the precision.
    """
    ranks = _all_parameters(config.decoder, tp, pp, precision)
    return sum(parameter.spec.nbytes for rank in ranks for parameter in rank)


def convert_decoder(
    checkpoint: Checkpoint,
    out_dir: Path,
    *,
    tp: int,
    pp: int,
    gpus_per_node: int = GPUS_PER_NODE,
    precision: Precision = BF16,
    calibration: Path | None = None,
    progress: Progress | None = None,
    digested: Digested | None = None,
) -> None:
    """Write `rank{r}.safetensors` for every rank and then, atomically, `config.json`.

    Files of an earlier conversion in `out_dir` are removed first; as long as config.json is absent the directory is
    not a checkpoint. The same input gives the same bytes. Values are cast with torch's own rounding (to nearest even),
    and what is quantised is quantised from the values so cast.

    Args:
        checkpoint: The source.
        out_dir: Directory to write into; made if it is missing.
        tp: Ranks that share each layer.
        pp: Pipeline stages.
        gpus_per_node: GPUs of each node that ranks will run on.
        precision: How values are stored.
        calibration: Folder with the results of a calibration (see quantize_scales), for a precision that needs them.
        progress: Called with the bytes written so far and in all.
        digested: Told the digest of each rank's file when it is complete; None computes none.

    Raises:
        RecipeError: the shapes do not allow this tp and pp at the precision, or it needs a calibration; nothing was
            touched.
        CheckpointError: results of the calibration are missing or wrong (nothing was touched), a source tensor cannot
            be read, or it holds a value that the precision cannot store.
    """
    from nvlm_trt.decoder.encode import stage_parts

    decoder = checkpoint.config.decoder
    ranks = list(_all_parameters(decoder, tp, pp, precision))
    results = _results(calibration, decoder, precision)
    meter = _Meter(converted_bytes(checkpoint.config, tp, pp, precision), progress)
    out_dir.mkdir(parents=True, exist_ok=True)
    _remove_earlier(out_dir)
    for stage in range(pp):
        indices = range(stage * tp, (stage + 1) * tp)
        members = [ranks[index] for index in indices]
        parts = stage_parts(checkpoint, members, precision, results)
        files = [out_dir / rank_file(index) for index in indices]
        _write_stage(files, members, parts, meter.advance, digested)
    TrtllmConfig.of(decoder, precision, tp=tp, pp=pp, gpus_per_node=gpus_per_node).write(out_dir)


class _Meter:
    """Counts bytes for a progress callback."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def advance(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


def _results(calibration: Path | None, decoder: DecoderConfig, precision: Precision) -> CalibrationResults | None:
    from nvlm_trt.decoder.quantize_scales import CalibrationResults

    if not precision.needs_calibration:
        return None
    if calibration is None:
        quantization = precision.quantization
        raise RecipeError(
            "the precision needs the results of a calibration",
            seen=f"quant_algo {quantization.quant_algo}, kv_cache_quant_algo {quantization.kv_cache_quant_algo}",
            fix="calibrate first",
        )
    return CalibrationResults.open(calibration, decoder, precision)


def _all_parameters(decoder: DecoderConfig, tp: int, pp: int, precision: Precision) -> Iterator[tuple[Parameter, ...]]:
    return (rank_parameters(decoder, Rank(tp, pp, index), precision) for index in range(max(1, tp * pp)))


def _remove_earlier(out_dir: Path) -> None:
    (out_dir / CONFIG_NAME).unlink(missing_ok=True)
    for path in out_dir.iterdir():
        if RANK_FILE.fullmatch(path.name):
            path.unlink()


def _write_stage(
    files: Sequence[Path],
    ranks: Sequence[tuple[Parameter, ...]],
    parts: Iterator[Part],
    advance: Callable[[int], None],
    digested: Digested | None,
) -> None:
    from nvlm_trt.model.row_reader import read_ahead

    with ExitStack() as stack:
        streams = [
            stack.enter_context(SafetensorsStream(file, [each.spec for each in parameters], digested=digested))
            for file, parameters in zip(files, ranks, strict=True)
        ]
        for part in stack.enter_context(closing(read_ahead(parts))):
            for rank, rows in part.rows.items():
                streams[rank].write_part(part.name, rows)
            advance(sum(rows.nbytes for rows in part.rows.values()))

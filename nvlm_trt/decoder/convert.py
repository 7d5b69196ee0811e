"""Convert the decoder of an NVLM-D checkpoint to a TensorRT-LLM checkpoint, streaming.

The ranks of a pipeline stage are written side by side, so that every source byte is read once: a tensor that all of
them share (the embedding, norms) or cut by columns (dense, proj) is read by blocks of rows and dealt out, and a tensor
cut by rows is read by each rank for its own rows only. Rows of a kv head that several ranks repeat are the one
exception. The next block is read while one is written. Memory is a few blocks whatever the size of the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from nvlm_trt.decoder.trtllm_config import CONFIG_NAME, StoredDtype, TrtllmConfig, stored_dtype
from nvlm_trt.decoder.trtllm_layout import Parameter, Piece, Rank, rank_parameters
from nvlm_trt.errors import CheckpointError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.config import DecoderConfig, NvlmConfig
from nvlm_trt.model.safetensors_stream import SafetensorsStream, TensorSpec
from nvlm_trt.progress import Progress

BLOCK_ELEMENTS = 8 << 20
"""Numbers that are read at a time: 16 MiB of BF16, 32 MiB of F32."""

Item = TypeVar("Item")

RANK_FILE = re.compile(r"rank\d+\.safetensors")


def rank_file(index: int) -> str:
    """Name of the file of one rank."""
    return f"rank{index}.safetensors"


def converted_bytes(config: NvlmConfig, tp: int, pp: int, dtype: str) -> int:
    """Bytes of all tensors of the converted checkpoint (headers, some 100 bytes a tensor, are not counted).

    Raises:
        RecipeError: the shapes do not allow this tp and pp, or there is no such dtype.
    """
    itemsize = stored_dtype(dtype).itemsize
    ranks = _stage_parameters(config.decoder, tp, pp)
    return itemsize * sum(parameter.elements for rank in ranks for parameter in rank)


def convert_decoder(
    checkpoint: Checkpoint, out_dir: Path, *, tp: int, pp: int, dtype: str, progress: Progress | None = None
) -> None:
    """Write `rank{r}.safetensors` for every rank and then, atomically, `config.json`.

    Files of an earlier conversion in `out_dir` are removed first; as long as config.json is absent the directory is
    not a checkpoint. The same input gives the same bytes. Values are cast with torch's own rounding (to nearest even).

    Args:
        checkpoint: The source.
        out_dir: Directory to write into; made if it is missing.
        tp: Ranks that share each layer.
        pp: Pipeline stages.
        dtype: "bfloat16", "float16" or "float32", for every tensor.
        progress: Called with the bytes written so far and in all.

    Raises:
        RecipeError: the shapes do not allow this tp and pp, or there is no such dtype.
        CheckpointError: a source tensor cannot be read, or holds a value beyond the range of float16.
    """
    decoder, stored = checkpoint.config.decoder, stored_dtype(dtype)
    config = TrtllmConfig(decoder=decoder, dtype=stored, tp=tp, pp=pp)
    ranks = list(_stage_parameters(decoder, tp, pp))
    meter = _Meter(converted_bytes(checkpoint.config, tp, pp, dtype), progress)
    out_dir.mkdir(parents=True, exist_ok=True)
    _remove_earlier(out_dir)
    for stage in range(pp):
        first = stage * tp
        _write_stage(checkpoint, out_dir, range(first, first + tp), ranks[first : first + tp], stored, meter.advance)
    config.write(out_dir)


class _Meter:
    """Counts bytes for a progress callback."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def advance(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


@dataclass(frozen=True, slots=True)
class _Output:
    """One rank's tensor that is being written."""

    stream: SafetensorsStream
    name: str
    columns: tuple[int, int] | None

    def write(self, block: torch.Tensor) -> int:
        """Append these rows, or their columns that belong to the rank; returns the bytes."""
        part = block if self.columns is None else block[:, slice(*self.columns)]
        self.stream.write_part(self.name, part)
        return part.nbytes


def _stage_parameters(decoder: DecoderConfig, tp: int, pp: int) -> Iterator[tuple[Parameter, ...]]:
    return (rank_parameters(decoder, Rank(tp, pp, index)) for index in range(max(1, tp * pp)))


def _remove_earlier(out_dir: Path) -> None:
    (out_dir / CONFIG_NAME).unlink(missing_ok=True)
    for path in out_dir.iterdir():
        if RANK_FILE.fullmatch(path.name):
            path.unlink()


def _write_stage(
    checkpoint: Checkpoint,
    out_dir: Path,
    indices: Sequence[int],
    ranks: Sequence[tuple[Parameter, ...]],
    stored: StoredDtype,
    advance: Callable[[int], None],
) -> None:
    with ExitStack() as stack:
        streams = []
        for index, parameters in zip(indices, ranks, strict=True):
            specs = [TensorSpec(each.name, stored.safetensors, each.shape) for each in parameters]
            streams.append(stack.enter_context(SafetensorsStream(out_dir / rank_file(index), specs)))
        parts = (
            (outputs, block)
            for same in zip(*ranks, strict=True)
            for piece, outputs in _groups(streams, same)
            for block in _blocks(checkpoint, piece, same[0].shape[1:], stored)
        )
        for outputs, block in stack.enter_context(closing(_read_ahead(parts))):
            advance(sum(output.write(block) for output in outputs))


def _read_ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The same items, each made by another thread while the one before is being used."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending = pool.submit(next, items, None)
        while (item := pending.result()) is not None:
            pending = pool.submit(next, items, None)
            yield item


def _groups(streams: Sequence[SafetensorsStream], same: Sequence[Parameter]) -> Iterator[tuple[Piece, list[_Output]]]:
    """Which rows to read and who gets them, for one tensor of all ranks of a stage."""
    row_ranges = {(piece.source, piece.start, piece.stop) for each in same for piece in each.pieces}
    if len(row_ranges) == 1:
        firsts = [each.pieces[0] for each in same]
        outputs = [_Output(stream, same[0].name, piece.columns) for stream, piece in zip(streams, firsts, strict=True)]
        yield firsts[0], outputs
        return
    for stream, each in zip(streams, same, strict=True):
        for piece in each.pieces:
            yield piece, [_Output(stream, each.name, piece.columns)]


def _blocks(
    checkpoint: Checkpoint, piece: Piece, row_shape: tuple[int, ...], stored: StoredDtype
) -> Iterator[torch.Tensor]:
    """The piece's rows, with all their columns, a bounded number at a time."""
    width = checkpoint.tensors[piece.source].shape[1:] if piece.source else row_shape
    step = max(1, BLOCK_ELEMENTS // max(1, torch.Size(width).numel()))
    for start in range(piece.start, piece.stop, step):
        stop = min(start + step, piece.stop)
        if piece.source is None:
            yield torch.zeros((stop - start, *width), dtype=stored.torch)
        else:
            yield _read(checkpoint, piece.source, start, stop, stored)


def _read(checkpoint: Checkpoint, name: str, start: int, stop: int, stored: StoredDtype) -> torch.Tensor:
    rows = checkpoint.read_rows(name, start, stop).to(stored.torch, copy=True)  # a mapped view is not yet read
    if stored.torch is torch.float16 and not torch.isfinite(rows).all():
        raise CheckpointError(
            "a weight does not fit into float16", seen=f"{name}, rows {start} to {stop}", fix="convert to bfloat16"
        )
    return rows

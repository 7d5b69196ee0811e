"""The values of all ranks of a pipeline stage, tensor by tensor and block by block, cut and quantised.

Every source byte is read once: a tensor that all ranks share (the embedding, norms) or cut by columns (dense, proj) is
read by blocks of rows and dealt out, and a tensor cut by rows is read by each rank for its own rows only. Rows of a kv
head that several ranks repeat are the one exception.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from nvlm_trt.decoder.precision import Precision, StoredDtype
from nvlm_trt.decoder.quantize import kv_cache_scale
from nvlm_trt.decoder.quantize_linear import LinearQuantizer, linear_quantizer
from nvlm_trt.decoder.quantize_scales import CalibrationResults
from nvlm_trt.decoder.trtllm_layout import Parameter, Piece
from nvlm_trt.errors import CheckpointError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.row_reader import RowReader

BLOCK_ELEMENTS = 1 << 20
"""Numbers that are read at a time: 2 MiB of BF16, 4 MiB of F32: the cores' caches hold them until they are written."""

Same = Sequence[Parameter]
"""One tensor of every rank of a stage: of equal name, shape and dtype, and made of other pieces."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that come next in a tensor: its name, and the rows by the rank's place in the stage.

    They may lie in memory that the next part but one is read into (see RowReader).
    """

    name: str
    rows: Mapping[int, torch.Tensor]


def stage_parts(
    checkpoint: Checkpoint,
    ranks: Sequence[tuple[Parameter, ...]],
    precision: Precision,
    results: CalibrationResults | None,
) -> Iterator[Part]:
    """All values of the ranks of a stage, in the order of their files.

    Args:
        checkpoint: The source.
        ranks: What each rank holds.
        precision: How it is stored.
        results: Results of the calibration; None where the precision needs none.

    Raises:
        CheckpointError: a source tensor cannot be read, or cannot be stored in the precision.
    """
    with RowReader(checkpoint) as reader:
        yield from _parts(_Source(checkpoint, reader, precision.dtype), ranks, precision, results)


def _parts(
    source: _Source, ranks: Sequence[tuple[Parameter, ...]], precision: Precision, results: CalibrationResults | None
) -> Iterator[Part]:
    linear: LinearQuantizer | None = None
    for same in zip(*ranks, strict=True):
        first = same[0]
        if first.calibrated is None:
            yield from _copies(source, same)
            continue
        assert results is not None
        found = results.layer(first.calibrated.layer)
        if first.calibrated.inputs is None:
            algo = precision.quantization.kv_cache_quant_algo
            assert algo is not None
            scale = kv_cache_scale(found.kv_amax, algo)
            yield Part(first.name, dict.fromkeys(range(len(same)), scale))
        elif first.pieces:
            inputs = max(_inputs(each)[1] for each in same)
            outputs = sum(piece.rows for piece in first.pieces)
            linear = linear_quantizer(precision, found.linear(first.calibrated.key), outputs=outputs, inputs=inputs)
            yield from _codes(source, same, linear)
        else:
            assert linear is not None
            suffix = first.name.rpartition(".")[2]
            yield Part(first.name, {rank: linear.scales(rank, _inputs(each))[suffix] for rank, each in enumerate(same)})


def _copies(source: _Source, same: Same) -> Iterator[Part]:
    for piece, ranks in _groups(same):
        for block in source.blocks(piece, same[0].shape[1:]):
            yield Part(same[0].name, {rank: _cut(block, columns, same[rank]) for rank, columns in ranks.items()})


def _codes(source: _Source, same: Same, linear: LinearQuantizer) -> Iterator[Part]:
    for piece, ranks in _groups(same):
        inputs = {rank: _inputs(same[rank]) for rank in ranks}
        for block in source.blocks(piece, same[0].shape[1:]):
            yield Part(same[0].name, linear.codes(block, inputs))


def _inputs(parameter: Parameter) -> tuple[int, int]:
    assert parameter.calibrated is not None
    assert parameter.calibrated.inputs is not None
    return parameter.calibrated.inputs


def _groups(same: Same) -> Iterator[tuple[Piece, Mapping[int, tuple[int, int] | None]]]:
    """Which rows to read, and which of their columns go to which ranks."""
    row_ranges = {(piece.source, piece.start, piece.stop) for each in same for piece in each.pieces}
    if len(row_ranges) == 1:
        firsts = [each.pieces[0] for each in same]
        yield firsts[0], {rank: piece.columns for rank, piece in enumerate(firsts)}
        return
    for rank, each in enumerate(same):
        for piece in each.pieces:
            yield piece, {rank: piece.columns}


def _cut(block: torch.Tensor, columns: tuple[int, int] | None, parameter: Parameter) -> torch.Tensor:
    """The columns that belong to the rank, and zeros up to its width."""
    if columns is None:
        return block
    part = block[:, slice(*columns)]
    width = parameter.shape[1]
    if part.shape[1] == width:
        return part
    wide = part.new_zeros((len(part), width))
    wide[:, : part.shape[1]] = part
    return wide


@dataclass(frozen=True, slots=True)
class _Source:
    """Where values come from, and what they are stored in."""

    checkpoint: Checkpoint
    reader: RowReader
    stored: StoredDtype

    def blocks(self, piece: Piece, row_shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
        """The piece's rows, with all columns that the source has, a bounded number at a time."""
        width = self.checkpoint.tensors[piece.source].shape[1:] if piece.source else row_shape
        step = max(1, BLOCK_ELEMENTS // max(1, torch.Size(width).numel()))
        for start in range(piece.start, piece.stop, step):
            stop = min(start + step, piece.stop)
            if piece.source is None:
                yield torch.zeros((stop - start, *width), dtype=self.stored.torch)
            else:
                yield self._read(piece.source, start, stop)

    def _read(self, name: str, start: int, stop: int) -> torch.Tensor:
        rows = self.reader.rows(name, start, stop).to(self.stored.torch)
        if self.stored.torch is torch.float16 and not torch.isfinite(rows).all():
            raise CheckpointError(
                "a weight does not fit into float16", seen=f"{name}, rows {start} to {stop}", fix="convert to bfloat16"
            )
        return rows

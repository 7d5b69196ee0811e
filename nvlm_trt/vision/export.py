"""Export the vision side of a checkpoint as ONNX: `vision.onnx`, its weights in `vision.onnx.data`, `config.json`.

Weights are streamed: a block of rows is read, cast and written before the next one is read, so memory grows neither
with the number of layers nor with the largest tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from onnx import ValueInfoProto, helper

from nvlm_trt.errors import CheckpointError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.file_writer import Digested, FileWriter
from nvlm_trt.model.reference.vision import IMAGE_MEAN, IMAGE_STD
from nvlm_trt.model.row_reader import RowReader, read_ahead
from nvlm_trt.model.safetensors_stream import as_bytes, torch_dtype
from nvlm_trt.progress import Progress
from nvlm_trt.vision.builder import OPSET, Weight, WeightScale, WeightSource
from nvlm_trt.vision.description import TensorDescription, VisionDescription
from nvlm_trt.vision.dtypes import FP32, graph_precision, table_dtype
from nvlm_trt.vision.graph import DATA_FILE, build_vision_graph
from nvlm_trt.vision.scales import VisionScales, encode, linear_names, scale_of

ONNX_FILE = "vision.onnx"

BLOCK_VALUES = 1 << 20
"""Values read at a time: 2 MiB of BF16, 4 MiB of F32: the cores' caches hold them until they are written."""


def export_vision(
    checkpoint: Checkpoint,
    out_dir: Path,
    *,
    precision: str,
    output_dtype: str,
    quantization: VisionScales | None = None,
    progress: Progress | None = None,
    digested: Digested | None = None,
) -> None:
    """Write `vision.onnx`, `vision.onnx.data` and `config.json` into `out_dir`; same checkpoint, same bytes.

    Args:
        checkpoint: The checkpoint; its dummy heads are checked to be zero, then left out.
        out_dir: An existing directory.
        precision: Type of weights and activations, where they are not quantised: "fp32" or "bf16".
        output_dtype: Type of the prompt table: "fp32", "bf16" or "fp16".
        quantization: How linear layers are quantised, if they are; their weights are then stored in 8 bits.
        progress: Told the bytes of `vision.onnx.data` written so far.
        digested: Told the digest of `vision.onnx.data` when it is complete; None computes none.

    Raises:
        RecipeError: unknown precision, output type or kind of quantisation.
        EngineError: the quantisation lacks a linear layer.
        CheckpointError: a dummy head holds something, a weight to be quantised is not finite, or a shard cannot be
            read.
    """
    compute, table = graph_precision(precision), table_dtype(output_dtype)
    checkpoint.check_dummy_heads()
    config = checkpoint.config
    graph = build_vision_graph(
        config, dummy_heads=checkpoint.dummy_heads, precision=compute, output=table, quantization=quantization
    )
    with FileWriter(out_dir / DATA_FILE, digested) as file, RowReader(checkpoint) as reader:
        source = _Source(checkpoint, reader)
        for weight in graph.weights:
            file.skip_to(weight.offset)
            if weight.scale is None:
                _write_weight(file, source, weight)
            else:
                _write_quantized(file, source, weight, weight.scale)
            if progress is not None:
                progress(file.position, graph.data_bytes)
    (out_dir / ONNX_FILE).write_bytes(graph.model.SerializeToString(deterministic=True))
    VisionDescription(
        precision=compute.name if quantization is None else quantization.kind,
        compute=None if quantization is None else compute.name,
        input=_describe(graph.model.graph.input[0]),
        output=_describe(graph.model.graph.output[0]),
        opset=OPSET,
        tile_size=config.tile_size,
        tokens_per_tile=config.tokens_per_tile,
        hidden_size=config.decoder.hidden_size,
        num_layers=config.vision.num_layers,
        num_heads=config.vision.num_heads,
        stripped_dummy_heads=checkpoint.dummy_heads,
        mean=list(IMAGE_MEAN),
        std=list(IMAGE_STD),
        data_bytes=graph.data_bytes,
    ).save(out_dir)


def vision_export_bytes(checkpoint: Checkpoint, precision: str, quantization: str | None = None) -> int:
    """Bytes that `export_vision` will write, a few kB of `config.json` aside.

    Args:
        checkpoint: The checkpoint.
        precision: As for `export_vision`.
        quantization: "int8" or "fp8", if linear layers are quantised; scales take the same room whatever they are.

    Raises:
        RecipeError: unknown precision or kind of quantisation.
    """
    config = checkpoint.config
    graph = build_vision_graph(
        config,
        dummy_heads=checkpoint.dummy_heads,
        precision=graph_precision(precision),
        output=FP32,
        quantization=None
        if quantization is None
        else VisionScales(quantization, dict.fromkeys(linear_names(config), 1.0)),
    )
    return graph.data_bytes + int(graph.model.ByteSize())


def _describe(value: ValueInfoProto) -> TensorDescription:
    tensor = value.type.tensor_type
    return TensorDescription(
        name=value.name,
        dtype=helper.tensor_dtype_to_np_dtype(tensor.elem_type).name,
        shape=[dim.dim_param or dim.dim_value for dim in tensor.shape.dim],
    )


def _write_weight(file: FileWriter, source: _Source, weight: Weight) -> None:
    if source.stores(weight):
        for rows in source.steps(weight.source):
            source.reader.send(weight.source.tensor, *rows, file)
        return
    with closing(read_ahead(source.blocks(weight.source))) as blocks:
        for block in blocks:
            file.write(as_bytes(block.to(weight.dtype.torch)).data)


def _write_quantized(file: FileWriter, source: _Source, weight: Weight, planned: WeightScale) -> None:
    """Write codes, then their scales. Scales of rows come with the rows; one for all of them takes a pass before."""
    kind, dtype = planned.quantization, planned.dtype
    whole = None if kind.per_row else scale_of(_largest(source, weight.source), kind, dtype)
    scales = [] if whole is None else [whole]
    with closing(read_ahead(source.blocks(weight.source))) as blocks:
        for block in blocks:
            scale = whole
            if scale is None:
                scale = scale_of(_finite(block.abs().amax(dim=1), weight.source), kind, dtype)
                scales.append(scale)
            file.write(as_bytes(encode(block, scale.unsqueeze(-1), kind)).data)
    file.skip_to(planned.offset)
    for scale in scales:
        file.write(as_bytes(scale).data)


def _largest(source: _Source, weight: WeightSource) -> torch.Tensor:
    largest = torch.stack([block.abs().amax() for block in source.blocks(weight)]).amax()
    return _finite(largest, weight)


def _finite(amax: torch.Tensor, source: WeightSource) -> torch.Tensor:
    if not torch.isfinite(amax).all():
        raise CheckpointError("a weight that is not finite cannot be quantised", seen=source.tensor)
    return amax


@dataclass(frozen=True, slots=True)
class _Source:
    """Where values come from."""

    checkpoint: Checkpoint
    reader: RowReader

    def stores(self, weight: Weight) -> bool:
        """Whether the checkpoint has the weight's rows as they are to be written: whole and in its type."""
        info = self.checkpoint.tensors[weight.source.tensor]
        return torch_dtype(info.dtype) is weight.dtype.torch and self._width(weight.source) == weight.source.columns

    def blocks(self, source: WeightSource) -> Iterator[torch.Tensor]:
        """The weight's values as consecutive matrices of a bounded number of rows, in the checkpoint's dtype."""
        for start, stop in self.steps(source):
            rows = self.reader.rows(source.tensor, start, stop)
            yield rows.reshape(-1, self._width(source))[:, : source.columns]

    def steps(self, source: WeightSource) -> Iterator[tuple[int, int]]:
        """The weight's ranges of rows, a bounded number of rows at a time."""
        step = max(1, BLOCK_VALUES // self._width(source))
        for start, stop in source.rows:
            for row in range(start, stop, step):
                yield row, min(row + step, stop)

    def _width(self, source: WeightSource) -> int:
        return max(1, math.prod(self.checkpoint.tensors[source.tensor].shape[1:]))

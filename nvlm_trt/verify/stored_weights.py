"""How far the weights in quantised rank files are from the source's: codes times scales against what they stand for.

Logits hide a wrong scale where 4 bits are coarse anyway; the weights themselves do not. One linear layer of one rank is
in memory at a time, so that this works for a model of any size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own short name

from nvlm_trt.decoder.convert import rank_file
from nvlm_trt.decoder.precision import PREQUANT, WEIGHT, WEIGHT_SCALE, QuantAlgo
from nvlm_trt.decoder.trtllm_config import TrtllmConfig
from nvlm_trt.decoder.trtllm_layout import Parameter, Rank, rank_parameters
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.safetensors_read import opened


def stored_weight_figures(checkpoint: Checkpoint, trtllm_dir: Path) -> dict[str, float]:
    """Compare every quantised weight of every rank with the rows and columns of the source that it stands for.

    Args:
        checkpoint: The source of the conversion.
        trtllm_dir: A TensorRT-LLM checkpoint of fp8, int8_sq or int4_awq, whose headers are right.

    Returns:
        `max_weight_error` and `mean_weight_error` over all linear layers of all ranks: the norm of the difference over
        that of the weight; `weights`, how many there are. A value that is not finite makes the errors NaN.

    Raises:
        CheckpointError: a file cannot be read.
    """
    errors = torch.tensor(list(_errors(checkpoint, trtllm_dir)), dtype=torch.float64)
    return {
        "weights": len(errors),
        "max_weight_error": float(errors.max()),
        "mean_weight_error": float(errors.mean()),
    }


def _errors(checkpoint: Checkpoint, trtllm_dir: Path) -> Iterator[float]:
    config = TrtllmConfig.read(trtllm_dir)
    algo = config.quantization.quant_algo
    suffixes = (WEIGHT, WEIGHT_SCALE) if algo == QuantAlgo.FP8 else (WEIGHT, WEIGHT_SCALE, PREQUANT)
    for index in range(config.world_size):
        parameters = rank_parameters(config.unpadded, Rank(config.tp, config.pp, index), config.precision)
        with opened(trtllm_dir / rank_file(index), "a rank file") as file:
            for parameter in parameters:
                if parameter.calibrated is not None and parameter.pieces:
                    layer = parameter.name.removesuffix(WEIGHT)
                    stored = _stored({suffix: file.get_tensor(f"{layer}{suffix}") for suffix in suffixes}, algo)
                    source = _source(checkpoint, parameter, config.dtype.torch, stored.shape[1])
                    # A rank may hold nothing but padding; then zero is right and anything else is not.
                    norm = float(source.norm())
                    difference = float((stored - source).norm())
                    yield difference / norm if norm else difference


def _stored(tensors: Mapping[str, torch.Tensor], algo: QuantAlgo | None) -> torch.Tensor:
    """The weight that codes, scales and factors stand for, float32 [out, in]."""
    codes, scales = tensors[WEIGHT], tensors[WEIGHT_SCALE].float()
    if algo == QuantAlgo.FP8:
        return codes.float() * scales
    factors = tensors[PREQUANT].float()
    if algo == QuantAlgo.SMOOTH_QUANT:
        return codes.float() * scales[:, None] * factors
    low = (codes << 4) >> 4  # of int8: the shift back brings the sign
    rows = torch.stack([low, codes >> 4], dim=1).flatten(0, 1).float()
    return (rows.view(*scales.shape, -1) * scales[:, :, None]).flatten(1) * factors


def _source(checkpoint: Checkpoint, parameter: Parameter, dtype: torch.dtype, inputs: int) -> torch.Tensor:
    """The rows and columns of the source, rounded to the model's dtype, with its zeros of padding: [out, inputs]."""
    rows = []
    for piece in parameter.pieces:
        if piece.source is None:
            rows.append(torch.zeros((piece.rows, inputs)))
            continue
        values = checkpoint.read_rows(piece.source, piece.start, piece.stop)
        values = values if piece.columns is None else values[:, slice(*piece.columns)]
        rows.append(F.pad(values.to(dtype).float(), (0, inputs - values.shape[1])))
    return torch.cat(rows)

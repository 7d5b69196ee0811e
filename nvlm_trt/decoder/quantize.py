"""How weights become codes with scales. Everything is computed in float32; rounding is to nearest, halves to even.

The rules are those of NVIDIA's Model Optimizer (modelopt/torch/export/quant_utils.py). A scale is what a code is
multiplied by. It is rounded to the dtype that it is stored in before it is used, so that codes fit what is stored.

Two steps differ from Model Optimizer's, which rounds smoothed weights to bfloat16 first and divides by AWQ scales that
are not rounded yet: 3.6 to 3.9% of SmoothQuant's codes and 0.3% of AWQ's are one more or less, at a smaller error.
"""

from __future__ import annotations

import torch

from nvlm_trt.decoder.precision import KvCacheAlgo

FP8_MAX = 448.0
"""The largest value of float8_e4m3fn."""

INT8_MAX = 127.0
INT4_MAX = 7.0


def scale_of(amax: torch.Tensor, largest: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Scales that map the largest absolute values to the largest code; 1 where they would be 0, NaN for NaN.

    Args:
        amax: Largest absolute values, float32, any shape.
        largest: The code that they get.
        dtype: What the scales are stored in.

    Returns:
        Scales of the same shape.
    """
    scale = (amax / largest).to(dtype)
    return scale.masked_fill_(scale == 0, 1.0)


def kv_cache_scale(amax: torch.Tensor, algo: KvCacheAlgo) -> torch.Tensor:
    """The scale of the KV cache, float32.

    For FP8 it is never below 1: smaller values than 448 are stored as they are, since e4m3 keeps its relative precision
    over most of its range, and keys and values beyond what the calibration saw still fit (get_kv_cache_scaling_factor
    of modelopt/torch/export does the same).

    Args:
        amax: Largest absolute key or value, float32 [1].
        algo: How the cache is kept.
    """
    if algo == KvCacheAlgo.FP8:
        return (amax / FP8_MAX).clamp(min=1.0)
    return scale_of(amax, INT8_MAX)


def fp8_codes(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Codes of a scale that is given, float8_e4m3fn; values beyond its range become the largest code.

    Args:
        weight: float32 [out, in].
        scale: float32 [1].
    """
    return (weight / scale).clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)


def int8_codes(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes, int8 [out, in], and the scale of every output, float32 [out].

    Args:
        weight: float32 [out, in], whole rows, so that the scales are the same on every rank.
    """
    scale = scale_of(weight.abs().amax(dim=1), INT8_MAX)
    codes = (weight / scale[:, None]).round_().clamp_(-INT8_MAX - 1, INT8_MAX)
    return codes.to(torch.int8), scale


def int4_codes(weight: torch.Tensor, group_size: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes, int8 [out, in] from -8 to 7, and the scale of every group, [out, in / group_size].

    Args:
        weight: float32 [out, in]; in is a multiple of group_size.
        group_size: Neighbouring inputs that share a scale.
        dtype: What the scales are stored in.
    """
    groups = weight.reshape(len(weight), -1, group_size)
    scale = scale_of(groups.abs().amax(dim=2), INT4_MAX, dtype)
    codes = (groups / scale.float()[:, :, None]).round_().clamp_(-INT4_MAX - 1, INT4_MAX)
    return codes.to(torch.int8).flatten(1), scale


def packed_int4(codes: torch.Tensor) -> torch.Tensor:
    """Two neighbouring outputs in a byte, the even one in its low half: int8 [out / 2, in] of int8 [out, in]."""
    return (codes[0::2] & 0x0F) | (codes[1::2] << 4)

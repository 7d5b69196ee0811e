"""Codes and scales: what a weight becomes, against arithmetic on single numbers."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nvlm_trt.decoder.precision import KvCacheAlgo
from nvlm_trt.decoder.quantize import fp8_codes, int4_codes, int8_codes, kv_cache_scale, packed_int4, scale_of


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float32)


def test_the_largest_value_gets_the_largest_code() -> None:
    assert scale_of(torch.tensor([896.0, 448.0]), 448.0).tolist() == [2.0, 1.0]
    codes, scale = int8_codes(row(-254.0, 1.0, 254.0))
    assert (codes.tolist(), scale.tolist()) == ([[-127, 0, 127]], [2.0])
    codes, scale = int4_codes(row(-14.0, 4.0, 3.5, 0.0), 2, torch.bfloat16)
    assert (codes.tolist(), scale.tolist()) == ([[-7, 2, 7, 0]], [[2.0, 0.5]])


@pytest.mark.parametrize(
    ("dtype", "most", "mean"), [(torch.bfloat16, 0.0034, 0.0017), (torch.float16, 0.00042, 2.1e-4)]
)
def test_an_fp8_scale_that_the_engine_rounds_moves_a_layer_by_so_much(
    dtype: torch.dtype, most: float, mean: float
) -> None:
    """Over every largest value that bfloat16 holds, within a power of two."""
    exact = scale_of(1 + torch.arange(128) / 128, 448.0)
    for gain in (exact.to(dtype).double() / exact.double(), exact.double() / exact.to(dtype).double()):
        assert float((gain - 1).abs().max()) == pytest.approx(most, rel=0.03)
        assert float((gain - 1).square().mean().sqrt()) == pytest.approx(mean, rel=0.03)


def test_halves_are_rounded_to_even() -> None:
    codes, _ = int8_codes(row(127.0, 0.5, 1.5, 2.5, -0.5, -1.5))
    assert codes.tolist() == [[127, 0, 2, 2, 0, -2]]
    codes, _ = int4_codes(row(7.0, 0.5, 1.5, -2.5), 4, torch.bfloat16)
    assert codes.tolist() == [[7, 0, 2, -2]]


@pytest.mark.parametrize("amax", [0.0, 1e-45])
def test_nothing_but_zeros_never_has_a_scale_of_zero(amax: float) -> None:
    assert scale_of(torch.tensor([amax]), 448.0).tolist() == [1.0]
    assert kv_cache_scale(torch.tensor([amax]), KvCacheAlgo.INT8).tolist() == [1.0]
    codes, scale = int8_codes(row(0.0, 0.0))
    assert (codes.tolist(), scale.tolist()) == ([[0, 0]], [1.0])
    codes, scale = int4_codes(row(0.0, 0.0, 7.0, 0.0), 2, torch.bfloat16)
    assert (codes.tolist(), scale.tolist()) == ([[0, 0, 7, 0]], [[1.0, 1.0]])


def test_a_value_that_is_no_number_shows_in_its_scale() -> None:
    assert int8_codes(row(float("nan"), 1.0))[1].isnan().all()
    assert int4_codes(row(float("inf"), 1.0), 2, torch.bfloat16)[1].isinf().all()


def test_the_scale_of_an_fp8_kv_cache_is_never_below_one() -> None:
    assert kv_cache_scale(torch.tensor([100.0]), KvCacheAlgo.FP8).tolist() == [1.0]
    assert kv_cache_scale(torch.tensor([896.0]), KvCacheAlgo.FP8).tolist() == [2.0]
    assert kv_cache_scale(torch.tensor([12.7]), KvCacheAlgo.INT8).item() == pytest.approx(0.1)


def test_fp8_saturates_and_rounds_as_e4m3_does() -> None:
    values = torch.linspace(-500, 500, 4001).reshape(1, -1)
    expected = np.clip(values.numpy() / np.float32(1.0), -448, 448).astype(ml_dtypes.float8_e4m3fn)
    assert fp8_codes(values, torch.tensor([1.0])).view(torch.uint8).numpy().tobytes() == expected.tobytes()


def test_int4_codes_fit_the_scale_as_it_is_stored() -> None:
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(1))
    codes, scale = int4_codes(weight, 64, torch.bfloat16)
    assert scale.dtype == torch.bfloat16
    exact = weight.reshape(16, 4, 64) / scale.float()[:, :, None]
    assert (codes.reshape(16, 4, 64).float() - exact).abs().max() <= 0.5 + 7 * 2**-8


@given(st.lists(st.integers(-8, 7), min_size=2, max_size=40))
def test_a_byte_holds_an_even_output_low_and_the_odd_one_above_it_high(values: list[int]) -> None:
    column = values[: len(values) // 2 * 2]
    packed = packed_int4(torch.tensor(column, dtype=torch.int8)[:, None])
    assert packed.shape == (len(column) // 2, 1)
    unpacked = []
    for byte in packed[:, 0].tolist():
        for half in (byte & 15, (byte >> 4) & 15):
            unpacked.append(half - 16 if half > 7 else half)
    assert unpacked == column

"""The linear layers and the KV cache of quantised ranks, number by number."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nvlm_trt.decoder.precision import KvCacheAlgo, QuantAlgo, Quantization
from nvlm_trt.emulation import arithmetic
from nvlm_trt.emulation.arithmetic import COMPUTE, Awq, Plain, RankTensors, WeightOnly, cached, e4m3, int8, linear
from nvlm_trt.errors import CheckpointError

NAN = float("nan")


def rank(folder: Path, tensors: dict[str, torch.Tensor]) -> RankTensors:
    save_file({f"x.{name}": tensor for name, tensor in tensors.items()}, folder / "rank0.safetensors")
    return RankTensors(folder / "rank0.safetensors", torch.bfloat16)


def weight_of(layer: arithmetic.Linear, inputs: int) -> torch.Tensor:
    """What a layer multiplies by, [out, in], where it leaves its inputs alone."""
    return layer(torch.eye(inputs, dtype=COMPUTE)).T


def test_e4m3_is_the_nearest_value_and_the_largest_one_beyond() -> None:
    values = torch.linspace(-460, 460, 40_001, dtype=torch.float64)
    expected = values.numpy().clip(-448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    assert np.array_equal(e4m3(values).numpy(), expected)
    assert e4m3(torch.tensor([17.0, 19.0, 1e9, -1e9])).tolist() == [16.0, 20.0, 448.0, -448.0]  # halves to even
    assert bool(e4m3(torch.tensor([NAN])).isnan().all())


def test_int8_rounds_halves_to_even_and_stops_at_its_ends() -> None:
    values = torch.tensor([0.5, 1.5, -0.5, -2.5, 127.6, -128.4, 1e9, NAN], dtype=COMPUTE)
    assert int8(values)[:-1].tolist() == [0, 2, 0, -2, 127, -128, 127]
    assert bool(int8(values)[-1].isnan())


def test_fp8_multiplies_codes_and_both_scales_as_the_layer_casts_them(tmp_path: Path) -> None:
    weight = torch.tensor([[1.5, -2.0, 0.25], [448.0, 0.0, 3.0]]).to(torch.float8_e4m3fn)
    scales = {"activation_scaling_factor": torch.tensor([0.1]), "weights_scaling_factor": torch.tensor([0.3])}
    layer = linear(rank(tmp_path, {"weight": weight, **scales}), "x", 2, 3, Quantization(QuantAlgo.FP8))
    x = torch.tensor([[1.0, 100.0, -0.033]], dtype=COMPUTE)
    input_scale, weight_scale = (float(np.float64(ml_dtypes.bfloat16(each))) for each in (0.1, 0.3))
    codes = (x.numpy() / input_scale).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    assert codes[0, 1] == 448
    expected = codes @ weight.double().numpy().T * input_scale * weight_scale
    np.testing.assert_allclose(layer(x).numpy(), expected, rtol=1e-15)


def test_smooth_quant_multiplies_whole_numbers(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randint(-128, 128, (6, 50), generator=generator, dtype=torch.int8)
    prequant = (torch.rand(50, generator=generator) + 0.5).bfloat16()
    stored = {
        "weight": weight,
        "prequant_scaling_factor": prequant,
        "activation_scaling_factor": torch.tensor([0.02]),
        "weights_scaling_factor": torch.rand(6, generator=generator),
    }
    layer = linear(rank(tmp_path, stored), "x", 6, 50, Quantization(QuantAlgo.SMOOTH_QUANT))
    x = torch.randn(4, 50, generator=generator, dtype=COMPUTE) * 2
    smoothed = (x.numpy().astype(ml_dtypes.bfloat16) * prequant.float().numpy().astype(ml_dtypes.bfloat16)).astype(
        float
    )
    codes = np.rint(smoothed / float(np.float32(0.02))).clip(-128, 127).astype(np.int64)
    assert codes.max() == 127
    sums = codes @ weight.numpy().astype(np.int64).T
    expected = sums * float(np.float32(0.02)) * stored["weights_scaling_factor"].double().numpy()
    np.testing.assert_allclose(layer(x).numpy(), expected, rtol=1e-14)


def test_awq_takes_the_even_output_from_the_low_half_and_a_scale_for_each_group() -> None:
    packed = torch.tensor([[0x7F, 0x10, 0x08, 0xE2]], dtype=torch.uint8).view(torch.int8)
    scales = torch.tensor([[1.0, 10.0], [0.5, 2.0]], dtype=COMPUTE)
    layer = Awq(packed, scales, torch.ones(4, dtype=torch.bfloat16))
    assert weight_of(layer, 4).tolist() == [[-1.0, 0.0, -80.0, 20.0], [3.5, 0.5, 0.0, -4.0]]


def test_awq_rounds_inputs_and_their_product_with_the_factors_to_the_models_dtype() -> None:
    packed, scales = torch.ones((1, 1), dtype=torch.int8), torch.ones((2, 1), dtype=COMPUTE)
    layer = Awq(packed, scales, torch.tensor([1.0078125], dtype=torch.bfloat16))
    x = 1.0 + 3 * 2.0**-9  # between two values of bfloat16; the product is too
    rounded = np.float32(ml_dtypes.bfloat16(x)) * np.float32(1.0078125)
    assert float(layer(torch.tensor([[x]], dtype=COMPUTE))[0, 0]) == float(ml_dtypes.bfloat16(rounded))


def test_the_build_quantises_rows_to_the_largest_magnitude_over_128() -> None:
    weight = torch.tensor([[1.0, -1.0, 0.01171875, -0.01171875], [0.0, 0.0, 0.0, 0.0]], dtype=torch.bfloat16)
    seen = weight_of(WeightOnly(weight, steps=128, column_blocks=1), 4)
    assert seen[0].tolist() == [127 / 128, -1.0, 2 / 128, -2 / 128]  # +128 is no code; 1.5 steps go away from zero
    assert seen[1].tolist() == [0.0, 0.0, 0.0, 0.0]


def test_blocks_of_columns_have_scales_of_their_own() -> None:
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    whole = weight_of(WeightOnly(weight, steps=8, column_blocks=2), 8)
    halves = [weight_of(WeightOnly(half, steps=8, column_blocks=1), 4) for half in weight.chunk(2, dim=1)]
    assert torch.equal(whole, torch.cat(halves, dim=1))
    assert not torch.equal(whole, weight_of(WeightOnly(weight, steps=8, column_blocks=1), 8))


def test_a_weight_that_is_widened_in_parts_is_the_same_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(7, 5, generator=torch.Generator().manual_seed(2))
    x = torch.randn(3, 5, dtype=COMPUTE, generator=torch.Generator().manual_seed(4))
    whole = Plain(weight)(x)
    monkeypatch.setattr(arithmetic, "BLOCK_VALUES", 10)
    torch.testing.assert_close(Plain(weight)(x), whole, rtol=1e-15, atol=1e-15)


def test_what_comes_back_from_the_cache_is_rounded_with_its_scale() -> None:
    values, scale = torch.tensor([1.0, 17.2, -9.1, 5000.0], dtype=COMPUTE), torch.tensor([2.0], dtype=COMPUTE)
    assert cached(values, None, None) is values
    assert cached(values, KvCacheAlgo.INT8, scale).tolist() == [0.0, 18.0, -10.0, 254.0]
    assert cached(values, KvCacheAlgo.FP8, scale).tolist() == [1.0, 18.0, -9.0, 896.0]


def test_a_tensor_of_another_dtype_is_refused(tmp_path: Path) -> None:
    tensors = rank(tmp_path, {"weight": torch.zeros(2, 3, dtype=torch.int8)})
    with pytest.raises(
        CheckpointError, match=r"x.weight has another dtype; seen: torch.int8; expected: torch.bfloat16"
    ):
        linear(tensors, "x", 2, 3, Quantization())
    with pytest.raises(CheckpointError, match=r"seen: torch.int8; expected: torch.float8_e4m3fn"):
        linear(tensors, "x", 2, 3, Quantization(QuantAlgo.FP8))

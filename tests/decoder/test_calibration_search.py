"""The search finds factors that quantise better than naive ones, as the converter will quantise."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from nvlm_trt.decoder.calibration_search import Awq, SmoothQuant, search_prequant, smoothed_amax
from nvlm_trt.decoder.calibration_statistics import InputStatistics
from nvlm_trt.decoder.quantize import int4_codes, int8_codes

ALPHAS = [step / 10 for step in range(11)]
WIDTH, OUTPUTS, ROWS = 192, 96, 300
OUTLIERS = [3, 70, 150]


def gathered(x: torch.Tensor) -> InputStatistics:
    statistics = InputStatistics(len(x), keep=128)
    for part in x.split(77):
        statistics.add(part)
    return statistics


@pytest.fixture(scope="module")
def planted() -> tuple[InputStatistics, list[torch.Tensor], torch.Tensor]:
    """Inputs with three channels that are 40 times as large as the others, two weights that share them."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, WIDTH, generator=random)
    x[:, OUTLIERS] *= 40
    x = x.bfloat16()
    weights = [torch.randn(OUTPUTS, WIDTH, generator=random).bfloat16() * 0.05 for _ in range(2)]
    return gathered(x), weights, x


def squares(output: torch.Tensor, exact: torch.Tensor) -> float:
    return float((output - exact).square().sum() / exact.square().sum())


def w8a8_error(rows: torch.Tensor, x: torch.Tensor, weights: Sequence[torch.Tensor], prequant: torch.Tensor) -> float:
    """W8A8 in whole numbers, written independently of the search."""
    largest = (x * prequant.bfloat16()).abs().max().float()
    codes_x = torch.round((rows * prequant.bfloat16()).double() / (largest.double() / 127)).clamp(-128, 127)
    outputs, exacts = [], []
    for weight in weights:
        codes, scale = int8_codes(weight.float() / prequant)
        outputs.append(codes_x @ codes.double().t() * (largest.double() / 127) * scale.double())
        exacts.append(rows.double() @ weight.double().t())
    return squares(torch.cat(outputs, dim=1), torch.cat(exacts, dim=1))


def test_smoothquant_beats_alpha_zero_and_no_smoothing_where_channels_stick_out(
    planted: tuple[InputStatistics, list[torch.Tensor], torch.Tensor],
) -> None:
    inputs, weights, x = planted
    found = search_prequant(SmoothQuant(inputs, weights), inputs, weights, ALPHAS)
    assert found.alpha >= 0.2
    assert found.error < 0.2 * found.error_at_zero
    assert found.error < 0.2 * w8a8_error(inputs.rows, x, weights, torch.ones(WIDTH))
    assert found.prequant[OUTLIERS].max() < found.prequant.median()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_error_is_that_of_integer_arithmetic_on_rows_that_the_factors_were_not_made_from(
    planted: tuple[InputStatistics, list[torch.Tensor], torch.Tensor], alpha: float
) -> None:
    inputs, weights, x = planted
    found = search_prequant(SmoothQuant(inputs, weights), inputs, weights, [alpha])
    amax_w = torch.cat(weights).float().abs().amax(dim=0)
    wrong = energy = 0.0
    for first, last in ((0, 32), (32, 64), (64, 96), (96, 128)):
        own = inputs.rows[first:last]
        rest = torch.cat([inputs.rows[:first], inputs.rows[last:]]).float().abs().amax(dim=0)
        unseen = x.float().abs().amax(dim=0)
        own_record = own.float().abs().amax(dim=0) == unseen
        unseen[own_record] = rest[own_record]
        assert 0 < int(own_record.sum()) < WIDTH
        prequant = (amax_w ** (1 - alpha) / unseen**alpha).bfloat16().float()
        own_energy = float((own.double() @ torch.cat(weights).double().t()).square().sum())
        energy += own_energy
        wrong += own_energy * w8a8_error(own, unseen[None].bfloat16(), weights, prequant)
    assert found.error == pytest.approx(wrong / energy, rel=1e-3)
    factors = (amax_w ** (1 - alpha) / x.float().abs().amax(dim=0) ** alpha).bfloat16().float()
    torch.testing.assert_close(found.prequant, factors, rtol=2**-7, atol=0)


def samples_of(seed: int, count: int, tokens: int = 100) -> torch.Tensor:
    """Inputs whose channels are large in one sample and small in the next, as topics and languages make them."""
    random = torch.Generator().manual_seed(seed)
    scales = torch.randn(count, 1, 512, generator=random).exp()
    return (torch.randn(count, tokens, 512, generator=random) * scales).flatten(0, 1).bfloat16()


def unseen_error(x: torch.Tensor, weights: list[torch.Tensor], alpha: float, others: torch.Tensor) -> float:
    inputs = InputStatistics(len(x), keep=512)
    inputs.add(x)
    found = search_prequant(SmoothQuant(inputs, weights), inputs, weights, [alpha])
    return w8a8_error(others, x, weights, found.prequant)


def test_a_strength_chosen_on_few_samples_holds_on_others() -> None:
    random = torch.Generator().manual_seed(2)
    weights = [(torch.randn(256, 512, generator=random) * 0.03).bfloat16()]
    x, others = samples_of(10, count=8), samples_of(4, count=20)
    inputs = InputStatistics(len(x), keep=512)
    inputs.add(x)
    chosen = search_prequant(SmoothQuant(inputs, weights), inputs, weights, ALPHAS)
    errors = {alpha: unseen_error(x, weights, alpha, others) for alpha in ALPHAS}
    assert errors[chosen.alpha] < 2 * min(errors.values())
    # What looks best on the rows that set the scales is many times worse on others.
    trusting = {
        alpha: w8a8_error(
            x, x, weights, search_prequant(SmoothQuant(inputs, weights), inputs, weights, [alpha]).prequant
        )
        for alpha in ALPHAS
    }
    naive = min(trusting, key=lambda alpha: trusting[alpha])
    assert errors[naive] > 4 * errors[chosen.alpha]


def test_a_single_row_is_judged_by_what_it_is_made_of() -> None:
    row = torch.randn(1, 64).bfloat16()
    inputs = InputStatistics(1, keep=8)
    inputs.add(row)
    found = search_prequant(SmoothQuant(inputs, [torch.randn(8, 64).bfloat16()]), inputs, [torch.eye(64)], [0.5])
    assert 0 < found.error < 1e-3


def test_smoothquant_follows_the_papers_rule(
    planted: tuple[InputStatistics, list[torch.Tensor], torch.Tensor],
) -> None:
    inputs, weights, x = planted
    amax_w = torch.cat(weights).float().abs().amax(dim=0)
    expected = x.float().abs().amax(dim=0) ** 0.6 / amax_w**0.4
    torch.testing.assert_close(SmoothQuant(inputs, weights).divisors(0.6), expected)


def awq_error(rows: torch.Tensor, weight: torch.Tensor, prequant: torch.Tensor, group: int) -> float:
    width = weight.shape[1]
    padded = torch.nn.functional.pad(weight.float() / prequant, (0, -width % group))
    codes, scale = int4_codes(padded, group, torch.bfloat16)
    values = (codes.view(len(weight), -1, group) * scale.float()[:, :, None]).flatten(1)[:, :width]
    exact = rows.float() @ weight.float().t()
    return squares((rows * prequant.bfloat16()).float() @ values.t(), exact)


@pytest.mark.parametrize("group", [64, 128])
def test_awq_beats_rounding_to_nearest_where_channels_stick_out(
    planted: tuple[InputStatistics, list[torch.Tensor], torch.Tensor], group: int
) -> None:
    inputs, weights, _ = planted
    found = search_prequant(Awq(inputs, group), inputs, weights[:1], ALPHAS)
    nearest = awq_error(inputs.rows, weights[0], torch.ones(WIDTH), group)
    assert found.error_at_zero == pytest.approx(nearest, rel=1e-4)
    assert found.error == pytest.approx(awq_error(inputs.rows, weights[0], found.prequant, group), rel=1e-4)
    assert found.alpha > 0
    assert found.error < 0.7 * nearest
    assert found.prequant[OUTLIERS].max() < found.prequant.median()


def test_awq_factors_are_spread_evenly_around_one(
    planted: tuple[InputStatistics, list[torch.Tensor], torch.Tensor],
) -> None:
    inputs, _, x = planted
    divisors = Awq(inputs, 64).divisors(0.5)
    mean = x.float().abs().mean(dim=0)
    torch.testing.assert_close(divisors, mean**0.5 / (mean.max() * mean.min()) ** 0.25, rtol=1e-4, atol=0)
    assert float(divisors.max() * divisors.min()) == pytest.approx(1, rel=1e-4)
    assert torch.equal(Awq(inputs, 64).divisors(0.0), torch.ones(WIDTH))


def test_of_equally_good_alphas_the_smallest_is_taken() -> None:
    inputs = gathered(torch.ones(100, 64).bfloat16())
    assert search_prequant(Awq(inputs, 64), inputs, [torch.randn(8, 64).bfloat16()], ALPHAS).alpha == 0


@pytest.mark.parametrize("scheme", ["smoothquant", "awq"])
def test_channels_that_are_always_zero_get_the_factor_one(scheme: str) -> None:
    x = torch.randn(50, 128).bfloat16()
    x[:, 5] = 0
    weight = torch.randn(16, 128).bfloat16()
    weight[:, 9] = 0
    inputs = gathered(x)
    found = search_prequant(
        SmoothQuant(inputs, [weight]) if scheme == "smoothquant" else Awq(inputs, 64), inputs, [weight], ALPHAS
    )
    assert found.prequant[5] == 1
    assert bool((found.prequant > 0).all())
    assert bool(found.prequant.isfinite().all())
    nothing = gathered(torch.zeros(50, 128).bfloat16())
    for zero in (SmoothQuant(nothing, [weight]), Awq(nothing, 64)):
        found = search_prequant(zero, nothing, [weight], ALPHAS)
        assert (found.alpha, found.error) == (0, 0)
        assert torch.equal(found.prequant, torch.ones(128))


def test_the_largest_smoothed_input_is_exact() -> None:
    x = torch.randn(200, 64).bfloat16()
    prequant = (torch.rand(64) + 0.1).bfloat16().float()
    seen = smoothed_amax(gathered(x).amax, prequant)
    assert seen.tolist() == [float((x * prequant.bfloat16()).abs().max())]


def test_kept_rows_are_spread_over_all_samples() -> None:
    x = torch.arange(1000.0)[:, None]
    statistics = InputStatistics(1000, keep=8)
    for part in x.split(33):
        statistics.add(part)
    assert statistics.rows.flatten().tolist() == [0, 125, 250, 375, 500, 625, 750, 875]
    few = InputStatistics(3, keep=8)
    few.add(x[:3])
    assert few.rows.flatten().tolist() == [0, 1, 2]
    assert few.mean.tolist() == [1.0]

"""Rates and gaps of streams, by hand."""

from __future__ import annotations

import pytest

from nvlm_trt.bench.arrivals import gaps, steady_rate, token_times
from nvlm_trt.bench.record import CaseRecord, RequestRecord


def stream(*arrivals: float) -> RequestRecord:
    """An answer whose tokens came then."""
    return RequestRecord(
        ttft_s=arrivals[0],
        total_s=arrivals[-1],
        prompt_tokens=10,
        output_tokens=len(arrivals),
        images=0,
        arrivals_s=arrivals,
    )


def case(*streams: tuple[float, RequestRecord]) -> CaseRecord:
    """Streams that started then."""
    started, requests = zip(*streams, strict=True)
    return CaseRecord(scenario="stall", case="long prompt", wall_s=1.0, started_s=started, requests=requests)


def test_tokens_that_nobody_noted_are_taken_to_be_evenly_spaced() -> None:
    request = RequestRecord(ttft_s=1.0, total_s=3.0, prompt_tokens=1, output_tokens=5, images=0, arrivals_s=(1.0, 3.0))
    assert token_times(request) == pytest.approx([1.0, 1.5, 2.0, 2.5, 3.0])
    assert token_times(request.model_copy(update={"output_tokens": 1})) == (1.0,)
    noted = stream(1.0, 1.1, 3.0)
    assert token_times(noted) == (1.0, 1.1, 3.0)


def test_the_rate_counts_only_while_all_streams_decode() -> None:
    alone = case((0.0, stream(1.0, 2.0, 3.0)))
    assert steady_rate(alone) == pytest.approx(1.0)
    # From 3.0, when the second has its first token, to 5.0, when the first ends: two tokens and one.
    both = case((0.0, stream(1.0, 2.0, 3.0, 4.0, 5.0)), (2.0, stream(1.0, 2.5, 4.0)))
    assert steady_rate(both) == pytest.approx(3 / 2)


def test_tokens_of_one_step_count_together_though_they_are_noted_one_after_the_other() -> None:
    late = [stream(*(step + place / 1000 for step in (1.0, 2.0, 3.0))) for place in range(8)]
    together = case(*((0.0, each) for each in late))
    assert steady_rate(together) == pytest.approx(8 * 2 / (2 - 0.007))


def test_streams_that_never_decode_together_have_no_rate() -> None:
    assert steady_rate(case((0.0, stream(1.0, 2.0)), (5.0, stream(1.0, 2.0)))) is None


def test_gaps_are_told_apart_by_the_arrival_of_the_long_prompt_and_its_first_token() -> None:
    running = stream(1.0, 2.0, 3.0, 6.0, 7.0, 8.0, 9.0)
    found = gaps(case((0.0, running), (3.5, stream(3.8))))  # it comes at 3.5 and has its first token at 7.3
    assert found.calm == pytest.approx([1.0, 1.0])
    assert found.disturbed == pytest.approx([3.0, 1.0, 1.0])


def test_a_stream_that_ended_too_early_is_left_out() -> None:
    found = gaps(case((0.0, stream(1.0, 2.0, 3.0)), (1.5, stream(2.0))))
    assert found == ([], [])


def test_pieces_that_a_server_passes_on_together_arrive_once() -> None:
    running = stream(1.0, 1.01, 2.0, 2.01, 3.0, 3.01, 6.0, 6.01, 8.0)
    found = gaps(case((0.0, running), (3.5, stream(3.8))))
    assert found.calm == pytest.approx([1.0, 1.0])
    assert found.disturbed == pytest.approx([3.0, 2.0])

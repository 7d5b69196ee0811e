"""Tiles of a request over GPUs: in order, none lost, no part beyond the plan."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nvlm_trt.serving.tile_parallel import tile_parts

numbers = st.integers(min_value=1, max_value=64)


@given(numbers, numbers, numbers)
def test_parts_are_all_tiles_in_order_and_none_is_larger_than_the_plan(tiles, gpus, at_most):
    parts = tile_parts(tiles, gpus, at_most)
    assert [tile for part in parts for tile in range(tiles)[part]] == list(range(tiles))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) <= min(at_most, -(-tiles // gpus))
    assert len(parts) <= gpus or max(sizes) == at_most


def test_seven_tiles_take_four_gpus_the_time_of_two():
    sizes = [part.stop - part.start for part in tile_parts(7, 4, 28)]
    assert sizes == [2, 2, 2, 1]

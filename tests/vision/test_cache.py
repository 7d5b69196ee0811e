"""The rows that are kept: those used last, within a bound, and never those of another tile."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvlm_trt.vision.cache import RowCache, tile_key

ROWS = np.zeros((16, 8), np.float32)


def rows(value: float) -> np.ndarray:
    return np.full((16, 8), value, np.float32)


def test_rows_come_back_as_they_were_and_may_not_be_written_to():
    cache = RowCache(1 << 20)
    cache.put(b"a", rows(1))
    kept = cache.get(b"a")
    assert np.array_equal(kept, rows(1))
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = 2
    assert cache.get(b"b") is None


def test_those_used_longest_ago_make_room():
    cache = RowCache(3 * ROWS.nbytes)
    for name in (b"a", b"b", b"c"):
        cache.put(name, rows(0))
    cache.get(b"a")
    cache.put(b"d", rows(0))
    assert cache.get(b"b") is None
    assert all(cache.get(name) is not None for name in (b"a", b"c", b"d"))
    status = cache.status()
    assert (status.tiles, status.bytes, status.evictions) == (3, 3 * ROWS.nbytes, 1)


@pytest.mark.parametrize("bound", [0, ROWS.nbytes - 1])
def test_rows_larger_than_the_bound_are_not_kept_and_push_nothing_out(bound):
    cache = RowCache(bound)
    cache.put(b"a", rows(0))
    assert cache.get(b"a") is None
    assert (cache.status().bytes, cache.status().evictions) == (0, 0)


def test_rows_of_a_tile_that_is_here_take_no_further_memory():
    cache = RowCache(1 << 20)
    for _ in range(3):
        cache.put(b"a", rows(0))
    assert cache.status().bytes == ROWS.nbytes


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), max_size=80), st.integers(0, 8))
def test_the_bound_holds_and_the_books_are_right_whatever_comes(puts, room):
    cache = RowCache(room * 32)
    sizes: dict[int, int] = {}
    for name, size in puts:
        sizes.setdefault(name, size)  # a tile has one size for ever
        cache.put(bytes([name]), np.zeros((sizes[name], 8), np.float32))
        status = cache.status()
        held = [number for number in sizes if cache.get(bytes([number])) is not None]
        assert status.bytes == 32 * sum(sizes[number] for number in held) <= status.max_bytes
        assert status.tiles == len(held)


def test_threads_may_use_it_at_once():
    cache = RowCache(5 * ROWS.nbytes)

    def use(number: int) -> bool:
        name = bytes([number % 9])
        cache.put(name, rows(number % 9))
        kept = cache.get(name)
        cache.count(hits=1)
        return kept is None or bool((kept == number % 9).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(2000)))
    assert cache.status().bytes <= 5 * ROWS.nbytes
    assert cache.status().hits == 2000


@given(st.integers(0, 4 * 4 * 3 - 1), st.integers(1, 255))
def test_one_pixel_makes_another_key(place, change):
    tile = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    other = tile.copy()
    other.reshape(-1)[place] ^= change
    assert tile_key(other) != tile_key(tile)
    assert len(tile_key(tile)) == 32


def test_the_key_is_of_the_pixels_wherever_they_lie():
    tile = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    view = np.repeat(tile, 2, axis=1)[:, ::2]
    assert tile_key(view) == tile_key(tile)

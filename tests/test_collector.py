"""A process that serves spares its collector what it began with."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from nvlm_trt.collector import set_aside


@pytest.fixture(autouse=True)
def seen_again() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_is_there_is_not_walked_again_and_what_comes_is():
    begun_with: list[object] = []
    set_aside()
    come_later: list[object] = []
    walked = {id(one) for one in gc.get_objects()}
    assert id(begun_with) not in walked
    assert id(come_later) in walked

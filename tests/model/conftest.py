"""Fixtures of the model's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from PIL import Image


@pytest.fixture
def pillow_memory() -> Iterator[None]:
    """Settings of Pillow's memory may be changed: they are put back."""
    before = Image.core.get_block_size(), Image.core.get_blocks_max(), Image.core.get_alignment()
    yield
    Image.core.set_block_size(before[0])
    Image.core.set_blocks_max(before[1])
    Image.core.set_alignment(before[2])

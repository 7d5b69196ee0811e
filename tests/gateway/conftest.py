"""What the gateway's tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .upstream import Upstream


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """A server behind the gateway."""
    server = Upstream()
    yield server
    server.close()

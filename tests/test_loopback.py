"""Which addresses are of this machine itself."""

from __future__ import annotations

import pytest

from nvlm_trt.loopback import is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "LocalHost", "::1", "[::1]", "0.0.0.0", "::"])
def test_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["10.0.0.5", "example.org", "localhost.example.org", "128.0.0.1", "fe80::1", ""])
def test_another_machine(host: str) -> None:
    assert not is_loopback(host)

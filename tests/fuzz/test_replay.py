"""Inputs that fuzzing begins with, and those that it once found to be handled badly, without the fuzzer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from . import image, prompt
from .corpus import findings, seeds

CHECKS: dict[str, Callable[[bytes], None]] = {"image": image.check, "prompt": prompt.check}
INPUTS = [(target, name, data) for target in CHECKS for name, data in (*seeds(target), *findings(target))]


@pytest.mark.parametrize(
    ("target", "data"), [pytest.param(target, data, id=f"{target}-{name}") for target, name, data in INPUTS]
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about damaged metadata of files that it reads
def test_holds(target: str, data: bytes) -> None:
    CHECKS[target](data)

"""The tiny checkpoint, opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.tokenizer import NvlmTokenizer


@pytest.fixture(scope="session")
def opened(tiny_checkpoint: Path) -> Checkpoint:
    """The tiny checkpoint."""
    return Checkpoint.open(tiny_checkpoint)


@pytest.fixture(scope="session")
def tokenizer(tiny_checkpoint: Path) -> NvlmTokenizer:
    """Its tokenizer."""
    return NvlmTokenizer.load(tiny_checkpoint)

"""Fixtures for verification: a checkpoint opened and its tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.tokenizer import NvlmTokenizer


@pytest.fixture(scope="session")
def opened(tiny_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(tiny_checkpoint)


@pytest.fixture(scope="session")
def tokenizer(tiny_checkpoint: Path) -> NvlmTokenizer:
    return NvlmTokenizer.load(tiny_checkpoint)

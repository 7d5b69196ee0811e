"""What is launched in these tests: an engine directory of each target, without engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvlm_trt.recipe import BuildRecipe

from ..unbuilt_engine import on_gpus, small_recipe, unbuilt_engine


@pytest.fixture
def recipe() -> BuildRecipe:
    """A recipe of the cpu target with small limits."""
    return small_recipe()


@pytest.fixture
def gpu_recipe() -> BuildRecipe:
    """The same for the gpu target with four ranks."""
    return on_gpus(small_recipe())


@pytest.fixture
def engine_dir(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """An engine directory without engines: config.json and tokenizer."""
    return unbuilt_engine(tiny_checkpoint, tmp_path)

"""Fixtures for verification: narrow decoders, and what calibration sees in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.synthetic import tiny_spec, write_synthetic
from nvlm_trt.verify.sharded import Prompt

from .trtllm_writer import Observed

VOCAB, HIDDEN = 203, 512

Narrow = Callable[[int, int, int], Checkpoint]


@pytest.fixture(scope="module")
def one_thread_an_operation() -> Iterator[None]:
    """Ranks that are threads already would only get into each other's way with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def prompts() -> list[Prompt]:
    """A text, and a text around nine rows of a prompt table."""
    generator = np.random.default_rng(11)
    before, after = generator.integers(0, VOCAB, 4), generator.integers(0, VOCAB, 5)
    table = generator.standard_normal((9, HIDDEN), dtype=np.float32)
    mixed = np.concatenate([before, VOCAB + np.arange(9), after]).astype(np.int32)
    return [(list(generator.integers(0, VOCAB, 13)), None), (mixed, table)]


@pytest.fixture(scope="session")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Narrow:
    """Checkpoints by layers, kv heads and the MLP's width, made once: 8 heads of 64, an odd vocabulary."""
    root, made = tmp_path_factory.mktemp("narrow"), {}

    def make(layers: int, kv_heads: int, intermediate_size: int) -> Checkpoint:
        key = f"{layers}-{kv_heads}-{intermediate_size}"
        if key not in made:
            spec = tiny_spec(
                tile_size=28,
                vision_heads=1,
                vision_layers=1,
                dummy_heads=0,
                hidden_size=HIDDEN,
                intermediate_size=intermediate_size,
                decoder_layers=layers,
                heads=8,
                kv_heads=kv_heads,
                vocab_size=VOCAB,
            )
            write_synthetic(root / key, spec, seed=5)
            made[key] = Checkpoint.open(root / key)
        return made[key]

    return make


@pytest.fixture(scope="session")
def observed(prompts: list[Prompt]) -> Callable[[Checkpoint], Observed]:
    """What the prompts reach in a checkpoint, measured once: the calibration of every quantised one."""
    made: dict[Path, Observed] = {}

    def observe(checkpoint: Checkpoint) -> Observed:
        if checkpoint.path not in made:
            made[checkpoint.path] = Observed(checkpoint, prompts)
        return made[checkpoint.path]

    return observe

"""Fixtures of the decoder's tests: a tiny checkpoint converted and compiled once a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from nvlm_trt.decoder.build_cpu import build_decoder_cpu
from nvlm_trt.decoder.convert import convert_decoder
from nvlm_trt.decoder.engine import DecoderEngine
from nvlm_trt.decoder.precision import FP32
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.decoder import DecoderReference
from nvlm_trt.model.synthetic import tiny_spec, write_synthetic

MAX_BATCH, MAX_SEQ, MAX_ROWS = 8, 512, 64


@pytest.fixture(scope="session")
def decoder_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An NVLM-D checkpoint whose decoder has 3 layers, 8 heads, 4 kv heads, 8 wide."""
    path = tmp_path_factory.mktemp("decoder") / "checkpoint"
    spec = tiny_spec(tile_size=56, hidden_size=64, intermediate_size=160, decoder_layers=3, heads=8, kv_heads=4)
    write_synthetic(path, spec, seed=3)
    return path


@pytest.fixture(scope="session")
def reference(decoder_checkpoint: Path) -> DecoderReference:
    return DecoderReference(Checkpoint.open(decoder_checkpoint))


@pytest.fixture(scope="session")
def converted(decoder_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], Path]:
    """The float32 TensorRT-LLM checkpoint for a tp and a pp."""
    root = tmp_path_factory.mktemp("converted")

    def convert(tp: int, pp: int) -> Path:
        path = root / f"tp{tp}pp{pp}"
        if not path.exists():
            convert_decoder(Checkpoint.open(decoder_checkpoint), path, tp=tp, pp=pp, precision=FP32)
        return path

    return convert


@pytest.fixture(scope="session")
def compiled(converted: Callable[[int, int], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The compiled engine of a precision, from the ranks of a tp and a pp."""
    root = tmp_path_factory.mktemp("compiled")

    def build(precision: str, tp: int = 1, pp: int = 1) -> Path:
        path = root / f"{precision}-tp{tp}pp{pp}"
        if not path.exists():
            build_decoder_cpu(
                converted(tp, pp),
                path,
                precision=precision,
                max_batch_size=MAX_BATCH,
                max_seq_len=MAX_SEQ,
                max_prompt_table_rows=MAX_ROWS,
            )
        return path

    return build


@pytest.fixture(scope="session")
def fp32_engine(compiled: Callable[..., Path]) -> Iterator[DecoderEngine]:
    with DecoderEngine.load(compiled("fp32"), threads=1) as engine:
        yield engine


@pytest.fixture(scope="session")
def make_prompt(
    reference: DecoderReference,
) -> Callable[..., tuple[npt.NDArray[np.int32], npt.NDArray[np.float32] | None]]:
    """Random prompts by seed: ids, and a table whose rows stand in one stretch of the prompt."""
    config = reference.config

    def make(seed: int, length: int, rows: int = 0) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32] | None]:
        random = np.random.default_rng(seed)
        ids = random.integers(0, config.vocab_size, length).astype(np.int32)
        if not rows:
            return ids, None
        start = int(random.integers(0, length - rows + 1))
        ids[start : start + rows] = config.vocab_size + np.arange(rows)
        return ids, random.standard_normal((rows, config.hidden_size)).astype(np.float32)

    return make

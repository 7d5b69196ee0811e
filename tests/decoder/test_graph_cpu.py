"""The decoder graph computes what the reference computes, whatever shares its steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from nvlm_trt.decoder.build_cpu import build_decoder_cpu
from nvlm_trt.decoder.convert import convert_decoder
from nvlm_trt.decoder.engine_config import DecoderEngineConfig
from nvlm_trt.decoder.graph_constants import matrix_constant, quantize_rows
from nvlm_trt.decoder.precision import FP32
from nvlm_trt.decoder.session_cpu import DecoderSession
from nvlm_trt.decoder.step import StepPart
from nvlm_trt.errors import BuildError, EngineError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.decoder import DecoderReference
from nvlm_trt.model.synthetic import tiny_spec, write_synthetic

BLOCKS = 24


def session_of(engine: Path) -> DecoderSession:
    return DecoderSession(engine, DecoderEngineConfig.read(engine), BLOCKS, threads=1)


def relative_error(seen: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(seen - expected).max() / np.abs(expected).max())


def cosine(seen: np.ndarray, expected: np.ndarray) -> float:
    return float(np.dot(seen, expected) / np.linalg.norm(seen) / np.linalg.norm(expected))


def last_logits(session: DecoderSession, ids: np.ndarray, table: np.ndarray | None) -> np.ndarray:
    return session.run([StepPart(ids, 0, range(BLOCKS), table, wants_logits=True)])[0].copy()


@pytest.mark.parametrize("rows", [0, 16])
def test_fp32_logits_equal_the_reference(compiled: Callable[..., Path], reference: DecoderReference, make_prompt, rows):
    session = session_of(compiled("fp32"))
    ids, table = make_prompt(rows, 90, rows)
    expected = reference.logits(ids, table)[-1].numpy()
    assert relative_error(last_logits(session, ids, table), expected) < 1e-5


def test_a_prompt_read_in_chunks_gives_the_logits_of_the_whole(compiled, reference, make_prompt):
    session = session_of(compiled("fp32"))
    ids, table = make_prompt(1, 100, 30)
    blocks, past = (9, 3, 17, 5), 0
    for size in (1, 31, 33, 35):
        part = StepPart(ids[past : past + size], past, blocks, table, wants_logits=True)
        logits = session.run([part])[0]
        past += size
        assert relative_error(logits, reference.logits(ids[:past], table)[-1].numpy()) < 1e-5


def test_sequences_packed_in_one_step_do_not_see_each_other(compiled, reference, make_prompt):
    session = session_of(compiled("fp32"))
    first, first_table = make_prompt(2, 40, 12)
    second, second_table = make_prompt(3, 70, 9)
    third, _ = make_prompt(4, 33)
    first_blocks, second_blocks, third_blocks = (2, 0), (11, 4, 7), (1, 6)
    session.run([StepPart(first[:-1], 0, first_blocks, first_table, wants_logits=False)])
    logits = session.run(
        [
            StepPart(first[-1:], len(first) - 1, first_blocks, first_table, wants_logits=True),
            StepPart(third[:20], 0, third_blocks, None, wants_logits=False),
            StepPart(second, 0, second_blocks, second_table, wants_logits=True),
        ]
    )
    assert logits.shape[0] == 2
    assert relative_error(logits[0], reference.logits(first, first_table)[-1].numpy()) < 1e-5
    assert relative_error(logits[1], reference.logits(second, second_table)[-1].numpy()) < 1e-5


def test_a_step_of_unfinished_prompts_has_no_logits(compiled, make_prompt):
    session = session_of(compiled("fp32"))
    ids, _ = make_prompt(5, 20)
    assert session.run([StepPart(ids, 0, (0,), None, wants_logits=False)]).shape[0] == 0


@pytest.mark.parametrize(
    ("heads", "kv_heads", "hidden"), [(8, 2, 128), (4, 4, 128), (4, 1, 256), (2, 1, 256), (4, 2, 96)]
)
def test_every_head_width_is_exact(tmp_path, heads: int, kv_heads: int, hidden: int):
    spec = tiny_spec(
        tile_size=56, hidden_size=hidden, intermediate_size=64, decoder_layers=2, heads=heads, kv_heads=kv_heads
    )
    write_synthetic(tmp_path / "checkpoint", spec)
    checkpoint = Checkpoint.open(tmp_path / "checkpoint")
    convert_decoder(checkpoint, tmp_path / "ranks", tp=1, pp=1, precision=FP32)
    build_decoder_cpu(
        tmp_path / "ranks",
        tmp_path / "engine",
        precision="fp32",
        max_batch_size=2,
        max_seq_len=128,
        max_prompt_table_rows=0,
    )
    ids = np.arange(70, dtype=np.int32) * 7 % checkpoint.config.decoder.vocab_size
    expected = DecoderReference(checkpoint).logits(ids)[-1].numpy()
    assert relative_error(last_logits(session_of(tmp_path / "engine"), ids, None), expected) < 1e-5


def mean_distance(session: DecoderSession, reference: DecoderReference, make_prompt) -> float:
    """Mean of 1 - cosine of the last logits over prompts with and without a table."""
    distances = []
    for seed in range(8):
        ids, table = make_prompt(seed, 60, 16 * (seed % 2))
        expected = reference.logits(ids, table)[-1].numpy()
        distances.append(1 - cosine(last_logits(session, ids, table), expected))
    return float(np.mean(distances))


def test_bf16_is_as_near_to_fp32_as_torch_in_bf16(compiled, decoder_checkpoint, reference, make_prompt):
    torch_bf16 = DecoderReference(Checkpoint.open(decoder_checkpoint), torch.bfloat16)
    torch_distance = []
    for seed in range(8):
        ids, table = make_prompt(seed, 60, 16 * (seed % 2))
        pair = (which.logits(ids, table)[-1].numpy() for which in (torch_bf16, reference))
        torch_distance.append(1 - cosine(*pair))
    assert mean_distance(session_of(compiled("bf16")), reference, make_prompt) < 1.5 * float(np.mean(torch_distance))


def test_int8_weights_keep_the_direction_of_the_logits(compiled, reference, make_prompt):
    assert mean_distance(session_of(compiled("int8_wo")), reference, make_prompt) < 0.005


def test_int8_rows_are_within_half_a_step_and_use_the_whole_range():
    weight = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    quantized, scale = quantize_rows(weight)
    assert quantized.dtype == torch.int8
    assert bool(((quantized * scale - weight).abs() <= scale / 2 + 1e-7).all())
    assert quantized.abs().amax(dim=1).tolist() == [127, 127, 127, 0, 127]


def test_a_weight_that_is_not_finite_is_refused():
    with pytest.raises(BuildError, match=r"layers\.1\.up.*not finite"):
        matrix_constant(torch.tensor([[1.0, float("nan")]]), "layers.1.up.weight", "bf16")


def test_a_damaged_model_file_is_an_engine_error(compiled, tmp_path):
    engine = compiled("fp32")
    config = DecoderEngineConfig.read(engine)
    (tmp_path / "model.xml").write_text("<net>")
    with pytest.raises(EngineError, match="cannot be loaded"):
        DecoderSession(tmp_path, config, BLOCKS)

"""Decoders of the gpu target's precisions that answer in torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nvlm_trt.calibration.prompts import build_prompts
from nvlm_trt.calibration.samples import SHIPPED_SAMPLES, read_samples
from nvlm_trt.decoder.calibrate import calibrate_decoder
from nvlm_trt.decoder.precision import BF16, decoder_precision
from nvlm_trt.emulation.decoder import EmulatedDecoder, emulated_decoder
from nvlm_trt.errors import RecipeError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.decoder import DecoderReference
from nvlm_trt.model.tokenizer import NvlmTokenizer
from nvlm_trt.verify.fake_quant import RoundedCheckpoint

TOKENS = 12


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(tiny_checkpoint)


@pytest.fixture(scope="module")
def prompt(checkpoint: Checkpoint) -> tuple[np.ndarray, torch.Tensor]:
    """Text, two rows of a prompt table, text."""
    vocab = checkpoint.config.decoder.vocab_size
    ids = np.array([5, 17, 33, vocab, vocab + 1, 90, 4], np.int32)
    return ids, torch.randn(2, checkpoint.config.decoder.hidden_size, generator=torch.Generator().manual_seed(1))


def one_by_one(decoder: EmulatedDecoder, ids: np.ndarray, table: torch.Tensor) -> list[int]:
    """Greedy decoding without a draft."""
    answer: list[int] = []
    for _ in range(TOKENS):
        forced = torch.as_tensor([*map(int, ids), *answer])
        logits = decoder._rank.logits(forced, table)
        assert logits is not None
        answer.append(int(logits[-1].argmax()))
    return answer


def test_without_quantisation_it_answers_as_the_reference_with_weights_in_bfloat16(checkpoint, prompt, tmp_path):
    expected = DecoderReference(RoundedCheckpoint(checkpoint, torch.bfloat16)).greedy(*prompt, max_tokens=TOKENS)
    decoder = emulated_decoder(checkpoint, BF16, tmp_path)
    assert decoder.greedy(*prompt, max_tokens=TOKENS) == expected


@pytest.mark.parametrize("precision", ["int8_wo", "int4_wo"])
def test_drafting_changes_no_token(checkpoint, prompt, tmp_path, precision):
    decoder = emulated_decoder(checkpoint, decoder_precision(precision), tmp_path)
    answer = decoder.greedy(*prompt, max_tokens=TOKENS)
    assert answer == one_by_one(decoder, *prompt)
    assert decoder.greedy(*prompt, max_tokens=5) == answer[:5]
    stop = answer[6]
    assert decoder.greedy(*prompt, max_tokens=TOKENS, stop_ids=[stop]) == answer[: answer.index(stop)]


def test_four_bits_lead_to_another_answer(checkpoint, prompt, tmp_path):
    """Else the tests above could not fail: the draft would always be right."""
    draft = DecoderReference(checkpoint).greedy(*prompt, max_tokens=TOKENS)
    assert emulated_decoder(checkpoint, decoder_precision("int4_wo"), tmp_path).greedy(
        *prompt, max_tokens=TOKENS
    ) not in (draft, [])


def test_calibrated_precisions_take_what_the_calibration_left(checkpoint, prompt, tmp_path):
    precision = decoder_precision("fp8")
    with pytest.raises(RecipeError, match="needs the results of a calibration"):
        emulated_decoder(checkpoint, precision, tmp_path / "none")
    samples = build_prompts(
        read_samples(SHIPPED_SAMPLES, 1),
        NvlmTokenizer.load(checkpoint.path),
        checkpoint.config,
        max_tokens=32,
        max_tiles=1,
    )
    calibrate_decoder(checkpoint, samples, tmp_path / "results", tmp_path / "work", precision=precision)
    decoder = emulated_decoder(checkpoint, precision, tmp_path / "fp8", calibration=tmp_path / "results")
    assert decoder.greedy(*prompt, max_tokens=TOKENS) == one_by_one(decoder, *prompt)

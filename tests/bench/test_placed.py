"""The reference on another device, on torch's meta device: it computes no values, but refuses to mix devices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nvlm_trt.bench.ask.placed import PlacedCheckpoint, PlacedDecoder, PlacedVision, open_reference
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.decoder import DecoderReference
from nvlm_trt.model.reference.vision import VisionReference

IDS = [5, 6, 7]
TILES = np.zeros((2, 112, 112, 3), np.uint8)


@pytest.fixture(scope="module")
def elsewhere(tiny_checkpoint: Path) -> PlacedCheckpoint:
    return PlacedCheckpoint(Checkpoint.open(tiny_checkpoint), torch.device("meta"))


def test_tiles_are_encoded_where_the_weights_are(elsewhere: PlacedCheckpoint) -> None:
    table = PlacedVision(elsewhere, torch.bfloat16)(TILES)
    assert table.device.type == "meta"
    assert table.dtype == torch.bfloat16
    with pytest.raises(RuntimeError):  # the plain one does not do it
        VisionReference(elsewhere, torch.bfloat16)(TILES)


def test_prompts_are_read_where_the_weights_are(elsewhere: PlacedCheckpoint) -> None:
    logits = PlacedDecoder(elsewhere, torch.bfloat16).logits(IDS)
    assert logits.device.type == "meta"
    assert logits.shape == (3, elsewhere.config.decoder.vocab_size)
    with pytest.raises(RuntimeError):
        DecoderReference(elsewhere, torch.bfloat16).logits(IDS)


def test_on_the_cpu_a_placed_reference_says_the_same_as_the_plain_one(tiny_checkpoint: Path) -> None:
    vision, decoder = open_reference(tiny_checkpoint, "fp32", "cpu")
    assert (type(vision), type(decoder)) == (VisionReference, DecoderReference)
    here = PlacedCheckpoint(Checkpoint.open(tiny_checkpoint), torch.device("cpu"))
    table = vision(TILES)
    assert torch.equal(PlacedVision(here, torch.float32)(TILES), table)
    rows = table.flatten(0, 1)
    ids = [5, *range(decoder.config.vocab_size, decoder.config.vocab_size + len(rows)), 6]
    placed = PlacedDecoder(here, torch.float32)
    assert placed.greedy(ids, rows, max_tokens=4) == decoder.greedy(ids, rows, max_tokens=4)
    assert torch.equal(placed.logits(ids, rows), decoder.logits(ids, rows))

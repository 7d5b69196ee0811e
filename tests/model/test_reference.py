"""The torch oracle obeys the rules that make NVLM-D what it is, each checked by other means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.decoder import DecoderReference, rope_table, rotate
from nvlm_trt.model.reference.vision import VisionReference, normalise, pixel_shuffle, qk_norm, rms_norm
from nvlm_trt.model.synthetic import tiny_spec, write_synthetic
from nvlm_trt.model.tiling import cut_tiles, plan_grid


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(tiny_checkpoint)


@pytest.fixture(scope="module")
def decoder(checkpoint: Checkpoint) -> DecoderReference:
    return DecoderReference(checkpoint)


@pytest.fixture(scope="module")
def tiles(photographs: dict[str, Image.Image]) -> np.ndarray:
    image = photographs["coffee"]
    return cut_tiles(image, plan_grid(*image.size, max_tiles=6, tile_size=112), 112)


def test_pixel_shuffle_puts_row_offsets_before_column_offsets() -> None:
    x = torch.randn(2, 16, 5)
    y = pixel_shuffle(x, 2)
    grid = x.view(2, 4, 4, 5)
    for a, b, p, q in np.ndindex(2, 2, 2, 2):
        start = (p * 2 + q) * 5
        assert torch.equal(y[:, a * 2 + b, start : start + 5], grid[:, 2 * a + p, 2 * b + q])


def test_qk_norm_divides_by_the_real_width_only() -> None:
    x, weight = torch.randn(3, 12), torch.rand(12)
    x[:, 8:] = 0
    expected = x / (x[:, :8].square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    torch.testing.assert_close(qk_norm(x, weight, 8, 1e-6), expected)
    assert not torch.allclose(qk_norm(x, weight, 8, 1e-6), rms_norm(x, weight, 1e-6))


def test_normalisation_is_imagenets() -> None:
    tiles = np.full((1, 2, 2, 3), 128, np.uint8)
    expected = (128 / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(normalise(tiles)[0, :, 0, 0].numpy(), expected, rtol=1e-6)


def test_dummy_heads_change_nothing(tmp_path: Path, tiles: np.ndarray) -> None:
    outputs = []
    for dummy_heads in (0, 3):
        write_synthetic(tmp_path / str(dummy_heads), tiny_spec(tile_size=112, dummy_heads=dummy_heads))
    padded = Checkpoint.open(tmp_path / "3")
    plain = Checkpoint.open(tmp_path / "0")
    for checkpoint in (padded, plain):
        reference = VisionReference(checkpoint)
        for name, weight in reference._weights.items():
            source = padded.read(name, torch.float32)
            reference._weights[name] = strip(name, source, weight) if checkpoint is plain else source
        outputs.append(reference(tiles[:2]))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)


def strip(name: str, padded: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The real heads' part of a padded tensor, in the shape of one that was never padded."""
    if "attn.qkv" in name:
        return torch.cat([part[: like.shape[0] // 3] for part in padded.chunk(3)])
    if "attn.proj.weight" in name:
        return padded[:, : like.shape[1]]
    return padded[: like.shape[0]]


def test_every_tile_is_encoded_for_itself(checkpoint: Checkpoint, tiles: np.ndarray) -> None:
    reference = VisionReference(checkpoint)
    together = reference(tiles)
    assert together.shape == (7, 16, 128)
    torch.testing.assert_close(together[3:4], reference(tiles[3:4]), rtol=1e-4, atol=1e-5)


def test_the_decoder_in_steps_equals_the_decoder_at_once(decoder: DecoderReference) -> None:
    ids = [5, 17, 300, 42]
    steps = decoder.greedy_steps(ids, max_tokens=6)
    whole = decoder.logits(ids + [token for token, _ in steps[:-1]])
    torch.testing.assert_close(torch.stack([logits for _, logits in steps]), whole[3:], rtol=1e-4, atol=1e-4)


def test_a_prompt_table_of_embedding_rows_equals_the_ids_themselves(
    checkpoint: Checkpoint, decoder: DecoderReference
) -> None:
    embedding = checkpoint.read("language_model.model.embed_tokens.weight", torch.float32)
    ids, vocabulary = [5, 17, 300, 42], checkpoint.config.decoder.vocab_size
    table = embedding[[17, 300]]
    assert torch.equal(decoder.logits([5, vocabulary, vocabulary + 1, 42], table), decoder.logits(ids))


def test_later_tokens_do_not_change_earlier_logits(decoder: DecoderReference) -> None:
    torch.testing.assert_close(decoder.logits([1, 2, 3])[:2], decoder.logits([1, 2, 9])[:2], rtol=1e-5, atol=1e-5)


def test_a_stop_id_ends_the_answer_and_is_not_returned(decoder: DecoderReference) -> None:
    free = decoder.greedy([5, 17], max_tokens=8)
    stop = free[3]
    assert decoder.greedy([5, 17], max_tokens=8, stop_ids=[stop]) == free[: free.index(stop)]


def test_rotation_by_relative_position_only() -> None:
    q, k = torch.randn(1, 1, 16), torch.randn(1, 1, 16)
    scores = []
    for start in (0, 100):
        cos, sin = rope_table(16, 1e6, start, 8, torch.float32)
        scores.append((rotate(q, cos[7:], sin[7:]) * rotate(k, cos[2:3], sin[2:3])).sum())
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-4)


def test_the_image_changes_the_answer(checkpoint: Checkpoint, decoder: DecoderReference, tiles: np.ndarray) -> None:
    table = VisionReference(checkpoint)(tiles[:2])
    vocabulary = checkpoint.config.decoder.vocab_size
    ids = [5, *range(vocabulary, vocabulary + 16), 42]
    answers = [decoder.greedy(ids, rows, max_tokens=8) for rows in table]
    assert answers[0] != answers[1]

"""Calibration prompts are what a request would be: template, tags, visual ids, tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nvlm_trt.calibration.prompts import PromptTiles, build_prompts
from nvlm_trt.calibration.samples import SHIPPED_SAMPLES, Sample, read_samples
from nvlm_trt.errors import ImageRejected
from nvlm_trt.model.config import NvlmConfig, load_config
from nvlm_trt.model.image import ImageLimits, read_image
from nvlm_trt.model.prompt import build_prompt
from nvlm_trt.model.tiling import tile_image
from nvlm_trt.model.tokenizer import NvlmTokenizer

COFFEE = SHIPPED_SAMPLES.parent / "images" / "coffee.jpg"


@pytest.fixture(scope="module")
def config(tiny_checkpoint: Path) -> NvlmConfig:
    return load_config(tiny_checkpoint)


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> NvlmTokenizer:
    return NvlmTokenizer.load(tiny_checkpoint)


def sample(question: str, answer: str | None = None, *images: Path) -> Sample:
    return Sample("samples.jsonl line 7", None, (), question, answer, images)


def test_a_sample_is_tokenised_and_cut_as_a_request_is(config: NvlmConfig, tokenizer: NvlmTokenizer) -> None:
    (prompt,) = build_prompts([sample("What?", None, COFFEE)], tokenizer, config, max_tokens=4096, max_tiles=6)
    tiles = tile_image(read_image(COFFEE.read_bytes()), max_tiles=6, tile_size=config.tile_size)
    expected = build_prompt(tokenizer, config.tokens_per_tile, "What?", tiles=[len(tiles)])
    np.testing.assert_array_equal(prompt.ids, expected.decoder_ids(config.decoder.vocab_size))
    np.testing.assert_array_equal(prompt.tiles(), tiles)
    assert prompt.num_tiles == len(tiles) == 7


def test_an_answer_follows_the_prompt_and_ends_the_turn(config: NvlmConfig, tokenizer: NvlmTokenizer) -> None:
    opened, answered = build_prompts(
        [sample("Hi"), sample("Hi", "\n Hello")], tokenizer, config, max_tokens=4096, max_tiles=6
    )
    ids = [*opened.ids, *tokenizer.encode_text("\n Hello"), tokenizer.eos_id]
    assert answered.ids.tolist() == ids
    assert answered.ids.dtype == np.int32


def test_a_long_sample_is_cut_at_its_end_with_the_tiles_that_are_left(
    config: NvlmConfig, tokenizer: NvlmTokenizer
) -> None:
    (whole,) = build_prompts([sample("What?", None, COFFEE)], tokenizer, config, max_tokens=4096, max_tiles=6)
    visual = np.flatnonzero(whole.ids >= config.decoder.vocab_size)
    length = int(visual[config.tokens_per_tile]) + 1  # the first visual token of the second tile
    (cut,) = build_prompts([sample("What?", None, COFFEE)], tokenizer, config, max_tokens=length, max_tiles=6)
    np.testing.assert_array_equal(cut.ids, whole.ids[:length])
    np.testing.assert_array_equal(cut.tiles(), whole.tiles()[:2])
    assert cut.digest != whole.digest


def test_tiles_of_all_prompts_come_in_order(config: NvlmConfig, tokenizer: NvlmTokenizer) -> None:
    cat = COFFEE.with_name("cat.jpg")
    prompts = build_prompts(
        [sample("a", None, COFFEE), sample("b"), sample("c", None, cat, COFFEE)],
        tokenizer,
        config,
        max_tokens=4096,
        max_tiles=2,
    )
    tiles = PromptTiles(prompts)
    assert len(tiles) == sum(prompt.num_tiles for prompt in prompts)
    np.testing.assert_array_equal(list(tiles), np.concatenate([prompt.tiles() for prompt in prompts]))
    assert prompts[1].num_tiles == 0


def test_digests_tell_pictures_of_equal_size_apart(
    config: NvlmConfig, tokenizer: NvlmTokenizer, tmp_path: Path
) -> None:
    for shade in (0, 1):
        Image.new("RGB", (20, 20), (shade, 0, 0)).save(tmp_path / f"{shade}.png")
    prompts = build_prompts(
        [sample("a", None, tmp_path / name) for name in ("0.png", "1.png", "0.png")],
        tokenizer,
        config,
        max_tokens=64,
        max_tiles=1,
    )
    assert prompts[0].digest == prompts[2].digest != prompts[1].digest


def test_a_picture_that_cannot_be_read_names_the_line(
    config: NvlmConfig, tokenizer: NvlmTokenizer, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for name, complaint in (("broken.png", "not an image"), ("absent.png", "cannot be read")):
        with pytest.raises(ImageRejected, match=f"samples.jsonl line 7: .*{complaint}"):
            build_prompts([sample("a", None, tmp_path / name)], tokenizer, config, max_tokens=64, max_tiles=1)


def test_pictures_are_read_as_a_server_of_the_recipe_reads_them(
    config: NvlmConfig, tokenizer: NvlmTokenizer, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = tmp_path / "turned.jpg"
    Image.open(COFFEE).resize((400, 100)).save(picture, exif=exif)

    def tiles(**asked: Any) -> int:
        (prompt,) = build_prompts(
            [sample("a", None, picture)], tokenizer, config, max_tokens=4096, max_tiles=6, **asked
        )
        return hash(prompt.tiles().tobytes())

    assert tiles() == tiles(exif_orientation=True) != tiles(exif_orientation=False)
    with pytest.raises(ImageRejected, match="too many pixels"):
        tiles(limits=ImageLimits(max_pixels=39_999))


def test_the_shipped_set_has_prompts_of_many_lengths(config: NvlmConfig, tokenizer: NvlmTokenizer) -> None:
    prompts = build_prompts(read_samples(SHIPPED_SAMPLES), tokenizer, config, max_tokens=2048, max_tiles=6)
    lengths = sorted(len(prompt.ids) for prompt in prompts)
    assert lengths[0] < 100
    assert 200 < lengths[32] < 1000
    assert lengths[-1] == 2048
    tokens = config.tokens_per_tile
    visual = [int((prompt.ids >= config.decoder.vocab_size).sum()) for prompt in prompts]
    assert all(count <= prompt.num_tiles * tokens for count, prompt in zip(visual, prompts, strict=True))
    assert sum(visual) > 60 * tokens


def test_the_shipped_set_fits_nvlm_d_72b(nvlm_72b: Path) -> None:
    config, tokenizer = load_config(nvlm_72b), NvlmTokenizer.load(nvlm_72b)
    prompts = build_prompts(read_samples(SHIPPED_SAMPLES), tokenizer, config, max_tokens=2048, max_tiles=6)
    assert sum(len(prompt.ids) for prompt in prompts) > 30_000
    visual = sum(int((prompt.ids >= config.decoder.vocab_size).sum()) for prompt in prompts)
    assert visual > 20_000

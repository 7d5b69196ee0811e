"""The questions and pictures on which an engine is compared with the reference.

Pictures are made by formula, of gradients, edges, texture and grain: they have what tiles of photographs have (large
smooth areas, sharp borders, detail at every scale), and every machine makes the same bytes. Samples of a task bring
their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from nvlm_trt.errors import EngineError
from nvlm_trt.eval.answer import read_images
from nvlm_trt.eval.tasks import Sample
from nvlm_trt.model.config import NvlmConfig
from nvlm_trt.model.image import DEFAULT_LIMITS, ImageLimits, read_image
from nvlm_trt.model.prompt import Prompt, build_prompt
from nvlm_trt.model.tiling import tile_image
from nvlm_trt.model.tokenizer import NvlmTokenizer
from nvlm_trt.recipe import BuildRecipe

Tiles = npt.NDArray[np.uint8]

QUESTIONS = (
    "What is written on the sign?",
    "Describe the image in one sentence.",
    "Which of the two pictures is brighter, and why?",
    "Schreibe die Antwort auf Deutsch: wie spät ist es? 几点了",
)

ASPECTS = ((2, 1), (1, 1), (1, 2))
"""Sides of the pictures in tiles, in turn: two tiles and their thumbnail have every kind of tag."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request to the engine may hold, and how its image files are read.

    Attributes:
        input_len: Tokens of the prompt.
        images: Images of a request.
        tiles: Tiles of an image's grid.
        files: What an image file may be.
        exif_orientation: Whether an image is turned upright as its EXIF says.
    """

    input_len: int
    images: int
    tiles: int
    files: ImageLimits = DEFAULT_LIMITS
    exif_orientation: bool = True

    @classmethod
    def of(cls, recipe: BuildRecipe, room: int) -> Self:
        """Those of a recipe.

        Args:
            recipe: The recipe.
            room: Tokens that an engine has for a prompt beside its answer.
        """
        return cls(
            min(recipe.max_input_len, room),
            recipe.max_images,
            recipe.max_tiles,
            recipe.image_limits.limits(),
            recipe.exif_orientation,
        )


@dataclass(frozen=True, slots=True)
class Case:
    """One request.

    Attributes:
        question: The text.
        pictures: Its images.
        tiles: uint8 [n, s, s, 3], the tiles of all images in order; n may be 0.
        prompt: The tokenised conversation.
    """

    question: str
    pictures: tuple[Image.Image, ...]
    tiles: Tiles
    prompt: Prompt


def make_cases(config: NvlmConfig, tokenizer: NvlmTokenizer, limits: Limits, count: int) -> list[Case]:
    """`count` requests with 0, 1 and 2 images in turn, or as many images as the limits allow."""
    cases = []
    for number in range(count):
        wanted = min(number % 3, limits.images)
        fitting = (make_case(config, tokenizer, limits, number, images) for images in range(wanted, -1, -1))
        cases.append(next((case for case in fitting if len(case.prompt.input_ids) <= limits.input_len), None))
    return [case for case in cases if case is not None]


def image_case(config: NvlmConfig, tokenizer: NvlmTokenizer, limits: Limits) -> Case:
    """A request with one image of one tile.

    Raises:
        EngineError: it is longer than the limits allow.
    """
    case = make_case(config, tokenizer, limits, 1, 1)
    needed = len(case.prompt.input_ids)
    if needed > limits.input_len:
        raise EngineError(
            "the engine is too short for an image, so nothing that it says about images can be judged",
            seen=f"{limits.input_len} tokens of a prompt",
            expected=f"at least {needed}, for one tile and a short question",
            fix="raise max_input_len in the recipe and build again",
        )
    return case


def make_case(config: NvlmConfig, tokenizer: NvlmTokenizer, limits: Limits, number: int, images: int) -> Case:
    """Request number `number` with `images` images."""
    size, question = config.tile_size, QUESTIONS[number % len(QUESTIONS)]
    pictures = []
    for index in range(images):
        columns, rows = ASPECTS[(number + index) % len(ASPECTS)]
        pictures.append(make_picture(columns * size + 32, rows * size + 32, seed=number * 8 + index))
    blocks = [_tiles([picture], config, limits) for picture in pictures]
    prompt = build_prompt(tokenizer, config.tokens_per_tile, question, tiles=[len(block) for block in blocks])
    return Case(question, tuple(pictures), _joined(blocks, config), prompt)


def _tiles(pictures: Sequence[Image.Image], config: NvlmConfig, limits: Limits) -> Tiles:
    size, thumbnail = config.tile_size, config.use_thumbnail
    blocks = [tile_image(each, max_tiles=limits.tiles, tile_size=size, use_thumbnail=thumbnail) for each in pictures]
    return _joined(blocks, config)


def _joined(blocks: Sequence[Tiles], config: NvlmConfig) -> Tiles:
    nothing = np.zeros((0, config.tile_size, config.tile_size, 3), np.uint8)
    return np.concatenate([nothing, *blocks])


def swapped_tiles(case: Case, config: NvlmConfig, limits: Limits, others: Sequence[Image.Image] = ()) -> Tiles:
    """Tiles that take the place of a case's own under the same prompt: uint8 [n, s, s, 3], n may be 0.

    Args:
        case: The request.
        config: The model.
        limits: Those that the case was made with.
        others: Pictures to show in place of its own, resized to their sizes; their own ones inverted and mirrored if
            there are none.
    """
    shown = []
    for index, picture in enumerate(case.pictures):
        if others:
            shown.append(others[index % len(others)].resize(picture.size))
        else:
            shown.append(ImageOps.mirror(ImageOps.invert(picture)))
    return _tiles(shown, config, limits)


def sample_case(sample: Sample, config: NvlmConfig, tokenizer: NvlmTokenizer, limits: Limits) -> Case:
    """The request of an evaluation sample.

    Raises:
        ImageRejected: an image cannot be read or is beyond the limits.
        PromptError: there are more images than placeholders.
    """
    pictures = tuple(
        read_image(data, limits.files, exif_orientation=limits.exif_orientation) for data in read_images(sample)
    )
    blocks = [_tiles([picture], config, limits) for picture in pictures]
    prompt = build_prompt(
        tokenizer,
        config.tokens_per_tile,
        sample.question,
        tiles=[len(block) for block in blocks],
        history=sample.history,
        system=sample.system,
    )
    return Case(sample.question, pictures, _joined(blocks, config), prompt)


def make_picture(width: int, height: int, *, seed: int) -> Image.Image:
    """An RGB picture of a sky-like gradient, waves of several scales, hard-edged discs, and grain."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    x, y = x / width, y / height
    channels = [0.25 + 0.5 * y, 0.35 + 0.3 * x, 0.6 - 0.3 * y]
    for scale in (3.0, 11.0, 37.0):
        phase, turn = random.uniform(0, 2 * np.pi, size=2)
        wave = np.sin(2 * np.pi * scale * (x * np.cos(turn) + y * np.sin(turn)) + phase)
        channels = [channel + weight * wave / scale for channel, weight in zip(channels, (0.5, 0.4, 0.3), strict=True)]
    for colour in random.uniform(0, 1, size=(5, 3)):
        centre_x, centre_y, radius = random.uniform(0.1, 0.9), random.uniform(0.1, 0.9), random.uniform(0.05, 0.2)
        inside = (x - centre_x) ** 2 + (y - centre_y) ** 2 < radius**2
        channels = [np.where(inside, tone, channel) for channel, tone in zip(channels, colour, strict=True)]
    pixels = np.stack(channels, axis=-1) + random.normal(0, 0.02, size=(height, width, 3))
    return Image.fromarray((np.clip(pixels, 0, 1) * 255).astype(np.uint8))


def prompt_faults(config: NvlmConfig, tokenizer: NvlmTokenizer, cases: Sequence[Case]) -> list[str]:
    """What is wrong with the tokenizer or the template, one sentence each; an exact one gives an empty list."""
    faults = []
    for text in (*QUESTIONS, "a  b\n\n c", "🙂", "<|im_start|>system<|vision_pad|><image>"):
        ids = tokenizer.encode_text(text)
        if tokenizer.decode(ids, skip_special_tokens=False) != text:
            faults.append(f"{text!r} is not what its tokens decode to")
        if tokenizer.vision_pad_id in ids:
            faults.append(f"{text!r} typed by a user becomes a visual token")
    for case in cases:
        expected = len(case.tiles) * config.tokens_per_tile
        seen = sum(token == tokenizer.vision_pad_id for token in case.prompt.input_ids)
        if not expected == seen == case.prompt.num_visual_tokens:
            faults.append(f"{case.question!r}: {seen} visual tokens for {len(case.tiles)} tiles")
        rows = case.prompt.decoder_ids(config.decoder.vocab_size) - config.decoder.vocab_size
        if not np.array_equal(rows[rows >= 0], np.arange(expected)):
            faults.append(f"{case.question!r}: visual ids do not count the rows of the prompt table")
    return faults

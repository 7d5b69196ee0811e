"""Calibration samples as the model sees them: template, tile tags, ids and tiles."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nvlm_trt.calibration.samples import Sample
from nvlm_trt.errors import ImageRejected
from nvlm_trt.model.config import NvlmConfig
from nvlm_trt.model.image import DEFAULT_LIMITS, ImageLimits, read_image
from nvlm_trt.model.prompt import build_prompt
from nvlm_trt.model.tiling import tile_image
from nvlm_trt.model.tokenizer import NvlmTokenizer


@dataclass(frozen=True, slots=True)
class CalibrationPrompt:
    """A sample, tokenised and cut.

    Attributes:
        ids: int32 [t], ``vocab_size + row`` at visual positions.
        images: Its image files.
        num_tiles: Tiles that the ids look at: those of all images in order, the last ones may be cut off.
        cut: How the images are cut.
        digest: SHA-256 of ids and tiles.
    """

    ids: npt.NDArray[np.int32]
    images: tuple[Path, ...]
    num_tiles: int
    cut: Cut
    digest: str

    def tiles(self) -> npt.NDArray[np.uint8]:
        """Read and cut the images: uint8 [num_tiles, s, s, 3].

        Raises:
            ImageRejected: an image cannot be read.
        """
        return _joined([self.cut.tiles(image) for image in self.images], self.cut.tile_size)[: self.num_tiles]


@dataclass(frozen=True, slots=True)
class Cut:
    """How images are read and cut into tiles; see nvlm_trt.model.image and nvlm_trt.model.tiling."""

    max_tiles: int
    tile_size: int
    use_thumbnail: bool
    limits: ImageLimits
    exif_orientation: bool

    def tiles(self, image: Path) -> npt.NDArray[np.uint8]:
        """The tiles of an image file: uint8 [n, s, s, 3], thumbnail last.

        Raises:
            ImageRejected: it cannot be read.
        """
        try:
            return tile_image(
                read_image(image.read_bytes(), self.limits, exif_orientation=self.exif_orientation),
                max_tiles=self.max_tiles,
                tile_size=self.tile_size,
                use_thumbnail=self.use_thumbnail,
            )
        except OSError as error:
            raise ImageRejected(f"an image cannot be read ({error.strerror})", seen=image) from None


@dataclass(frozen=True, slots=True)
class PromptTiles:
    """The tiles of all prompts in order, one prompt's images in memory at a time."""

    prompts: Sequence[CalibrationPrompt]

    def __len__(self) -> int:
        return sum(prompt.num_tiles for prompt in self.prompts)

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]:
        for prompt in self.prompts:
            if prompt.num_tiles:
                yield from prompt.tiles()


def build_prompts(
    samples: Sequence[Sample],
    tokenizer: NvlmTokenizer,
    config: NvlmConfig,
    *,
    max_tokens: int,
    max_tiles: int,
    limits: ImageLimits = DEFAULT_LIMITS,
    exif_orientation: bool = True,
) -> list[CalibrationPrompt]:
    """Tokenise samples as requests are: the released template, dynamic tiling, tile tags.

    An answer is tokenised by itself and ends with ``<|im_end|>``, as the model would have given it.

    Args:
        samples: The samples.
        tokenizer: The checkpoint's tokenizer.
        config: The checkpoint's configuration.
        max_tokens: Tokens of a prompt at most; longer ones are cut at the end.
        max_tiles: Tiles of an image's grid at most.
        limits: What an image may be at most.
        exif_orientation: Turn images upright as their EXIF says.

    Raises:
        ImageRejected: an image cannot be read, or is beyond the limits; the message names the line.
    """
    cut = Cut(max_tiles, config.tile_size, config.use_thumbnail, limits, exif_orientation)
    return [_prompt(sample, tokenizer, config, cut, max_tokens) for sample in samples]


def _prompt(
    sample: Sample, tokenizer: NvlmTokenizer, config: NvlmConfig, cut: Cut, max_tokens: int
) -> CalibrationPrompt:
    try:
        tiles = [cut.tiles(image) for image in sample.images]
    except ImageRejected as error:
        raise ImageRejected(
            f"{sample.where}: {error.what}", seen=error.seen, expected=error.expected, fix=error.fix
        ) from None
    prompt = build_prompt(
        tokenizer,
        config.tokens_per_tile,
        sample.question,
        tiles=[len(each) for each in tiles],
        history=sample.history,
        system=sample.system,
    )
    vocab_size = config.decoder.vocab_size
    ids = prompt.decoder_ids(vocab_size)
    if sample.answer is not None:
        answer = [*tokenizer.encode_text(sample.answer), tokenizer.eos_id]
        ids = np.concatenate([ids, np.asarray(answer, dtype=np.int32)])
    ids = ids[:max_tokens]
    visual = int(np.count_nonzero(ids >= vocab_size))
    num_tiles = -(-visual // config.tokens_per_tile)
    digest = hashlib.sha256(ids.tobytes() + _joined(tiles, cut.tile_size)[:num_tiles].tobytes()).hexdigest()
    return CalibrationPrompt(ids, sample.images, num_tiles, cut, digest)


def _joined(tiles: Sequence[npt.NDArray[np.uint8]], size: int) -> npt.NDArray[np.uint8]:
    return np.concatenate([np.zeros((0, size, size, 3), np.uint8), *tiles])

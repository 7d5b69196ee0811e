"""The torch reference as one who answers: the baseline of every comparison, and the frame for emulated precisions."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import torch

from nvlm_trt.decoder.stopping import answer_text
from nvlm_trt.eval.answer import Answer, AnswerOptions, read_images
from nvlm_trt.eval.tasks import Sample
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.image import read_image
from nvlm_trt.model.prompt import build_prompt
from nvlm_trt.model.reference.decoder import DecoderReference, Ids, Table
from nvlm_trt.model.reference.vision import VisionReference
from nvlm_trt.model.tiling import tile_image
from nvlm_trt.model.tokenizer import NvlmTokenizer
from nvlm_trt.recipe import BuildRecipe

DEFAULT_RECIPE: Final = BuildRecipe(name="reference", target="cpu")

Vision = Callable[[npt.NDArray[np.uint8]], torch.Tensor]
"""From tiles, uint8 [n, s, s, 3], to rows of the prompt table, [n, tokens_per_tile, hidden]."""


class Decoder(Protocol):
    """From a prompt to a greedy answer."""

    def greedy(self, ids: Ids, table: Table = None, *, max_tokens: int, stop_ids: Collection[int] = ()) -> list[int]:
        """Tokens of the answer, see `DecoderReference.greedy`."""


class ReferenceAnswerer:
    """A checkpoint in torch.

    Args:
        checkpoint: The checkpoint directory, weights and tokenizer.
        dtype: What is computed in: float32, or bfloat16 as released.
        options: How samples are asked.
        recipe: Tiles, orientation, limits of images and length of answers.
        vision: Takes the place of the vision encoder and projector.
        decoder: Takes the place of the decoder.

    Raises:
        CheckpointError: the checkpoint cannot be read.
    """

    def __init__(
        self,
        checkpoint: Path,
        dtype: torch.dtype = torch.float32,
        options: AnswerOptions | None = None,
        *,
        recipe: BuildRecipe = DEFAULT_RECIPE,
        vision: Vision | None = None,
        decoder: Decoder | None = None,
    ) -> None:
        source = Checkpoint.open(checkpoint)
        self._config = source.config
        self._tokenizer = NvlmTokenizer.load(checkpoint)
        self._options = options or AnswerOptions()
        self._recipe = recipe
        self._limits = recipe.image_limits.limits()
        self._vision = vision or VisionReference(source, dtype)
        self._decoder = decoder or DecoderReference(source, dtype)

    def answer(self, sample: Sample) -> Answer:
        """See `Answerer`."""
        started = time.perf_counter()
        cut = [self._tiles(data, self._options.max_tiles_of(sample)) for data in read_images(sample)]
        prompt = build_prompt(
            self._tokenizer,
            self._config.tokens_per_tile,
            sample.question,
            tiles=[len(tiles) for tiles in cut],
            history=sample.history,
            system=sample.system,
            tags=self._options.tags_of(sample),
        )
        ids = self._decoder.greedy(
            prompt.decoder_ids(self._config.decoder.vocab_size),
            self._table(cut),
            max_tokens=self._options.max_tokens_of(sample) or self._recipe.max_output_len,
            stop_ids=(self._tokenizer.eos_id,),
        )
        return Answer(answer_text(self._tokenizer, ids), len(ids), time.perf_counter() - started)

    def _tiles(self, data: bytes, max_tiles: int | None) -> npt.NDArray[np.uint8]:
        image = read_image(data, self._limits, exif_orientation=self._recipe.exif_orientation)
        return tile_image(
            image,
            max_tiles=max_tiles or self._recipe.max_tiles,
            tile_size=self._config.tile_size,
            use_thumbnail=self._config.use_thumbnail,
        )

    def _table(self, cut: list[npt.NDArray[np.uint8]]) -> torch.Tensor | None:
        """The prompt table, tile by tile: the memory is that of one."""
        rows = [self._vision(tile[np.newaxis]).flatten(0, 1) for tiles in cut for tile in tiles]
        return torch.cat(rows) if rows else None

"""Scenes as the model is trained on them: tiles, ids of the released template, and which ids are answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nvlm_trt.miniature.assets import Split
from nvlm_trt.miniature.scenes import SCENES, Example, Shares, draw
from nvlm_trt.model.config import NvlmConfig
from nvlm_trt.model.prompt import build_prompt
from nvlm_trt.model.tiling import tile_image
from nvlm_trt.model.tokenizer import NvlmTokenizer


@dataclass(frozen=True, slots=True)
class Conversation:
    """One training sequence.

    Attributes:
        ids: int64 [t]; ``vocab_size + row`` at visual positions, as the engines take them.
        answers: bool [t], true where an id belongs to an answer or ends it: what is learned.
        tiles: uint8 [n, s, s, 3], of all pictures in order.
    """

    ids: npt.NDArray[np.int64]
    answers: npt.NDArray[np.bool_]
    tiles: npt.NDArray[np.uint8]


def tokenise(example: Example, tokenizer: NvlmTokenizer, config: NvlmConfig) -> Conversation:
    """Cut the pictures and write the conversation in the released template, every answer ended by ``<|im_end|>``."""
    size = config.tile_size
    cut = [tile_image(picture.image, max_tiles=config.max_tiles, tile_size=size) for picture in example.pictures]
    *earlier, last = example.turns
    images = "<image>\n" * len(cut)
    said = [(turn.question, turn.answer) for turn in earlier]
    if said:
        said[0] = (images + said[0][0], said[0][1])
    question = last.question if said else images + last.question
    prompt = build_prompt(
        tokenizer, config.tokens_per_tile, question, tiles=[len(tiles) for tiles in cut], history=said
    )
    answer = [*tokenizer.encode_text(last.answer), tokenizer.eos_id]
    ids = np.concatenate([prompt.decoder_ids(config.decoder.vocab_size), answer]).astype(np.int64)
    tiles = np.concatenate([np.zeros((0, size, size, 3), np.uint8), *cut])
    return Conversation(ids, _answers(ids, tokenizer), tiles)


def batches(
    seed: int,
    first: int,
    *,
    size: int,
    split: Split,
    tokenizer: NvlmTokenizer,
    config: NvlmConfig,
    scenes: Shares = SCENES,
    sort: int = 4,
) -> Iterator[list[Conversation]]:
    """An endless stream of batches that can be entered anywhere: batch i is the same whatever `first` was.

    Args:
        seed: Seed of all batches.
        first: Number of the first batch.
        size: Conversations in a batch.
        split: Whose fonts, words and photographs are used.
        tokenizer: The miniature's.
        config: Its configuration.
        scenes: Kinds of scenes and their shares.
        sort: So many batches are drawn together and dealt out by length, which saves padding.
    """
    for group in range(first // sort, 1 << 62):
        rng = np.random.default_rng([seed, group])
        drawn = [tokenise(draw(rng, split, config.tile_size, scenes), tokenizer, config) for _ in range(size * sort)]
        drawn.sort(key=lambda conversation: len(conversation.ids))
        for number in rng.permutation(sort)[first - group * sort if group == first // sort else 0 :]:
            yield drawn[number * size : (number + 1) * size]


def _answers(ids: npt.NDArray[np.int64], tokenizer: NvlmTokenizer) -> npt.NDArray[np.bool_]:
    """True from after each ``<|im_start|>assistant`` and its newline up to the next ``<|im_end|>``."""
    opening = [tokenizer.start_of_turn_id, *tokenizer.encode_text("assistant\n")]
    answers = np.zeros(len(ids), np.bool_)
    for start in np.flatnonzero(ids == tokenizer.start_of_turn_id):
        begin = int(start) + len(opening)
        if ids[start:begin].tolist() == opening:
            end = begin + int(np.flatnonzero(ids[begin:] == tokenizer.eos_id)[0])
            answers[begin : end + 1] = True
    return answers

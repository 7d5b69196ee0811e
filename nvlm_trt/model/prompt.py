"""The prompt of the released chat(): template, tile tags, visual tokens, ids.

Source: conversation.py and modeling_nvlm_d.py of nvidia/NVLM-D-72B. Three rules matter:

* there is no newline after ``<|im_end|>``, and the default system message is "Answer the questions.";
* ``<image>`` is expanded to tags and visual tokens in the text of the whole conversation, and the text between special
  tokens is tokenised as one stretch: ``<Image><tile_1>`` holds the merged token ``><``, pieces would not;
* special tokens typed by a user, in any message, are plain text. (The release would read them as special.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nvlm_trt.errors import PromptError
from nvlm_trt.model.tiling import tile_tags
from nvlm_trt.model.tokenizer import END_OF_TURN, LONG_TEXT, START_OF_TURN, VISION_PAD, NvlmTokenizer
from nvlm_trt.parsed import is_whole

DEFAULT_SYSTEM = "Answer the questions."
IMAGE_PLACEHOLDER = "<image>"

Turn = tuple[str, str]
"""A question and the answer that was given to it."""

TileTags = Callable[[int], Sequence[str]]
"""From the number of an image's tiles to the text in front of each; called once an image, in their order."""


@dataclass(frozen=True, slots=True)
class Special:
    """A special token of the template, set apart from text."""

    text: str


Piece = Special | str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A tokenised conversation.

    Attributes:
        text: The expanded text, visual tokens written as ``<|vision_pad|>``.
        input_ids: Its ids for people: every visual position holds the id of ``<|vision_pad|>`` (151654).
        tiles: Tiles of each image, thumbnail included.
        num_visual_tokens: Visual positions in all.
        visual_positions: Their indices in `input_ids`, ascending.
    """

    text: str
    input_ids: tuple[int, ...]
    tiles: tuple[int, ...]
    num_visual_tokens: int
    visual_positions: tuple[int, ...]

    def decoder_ids(self, vocab_size: int) -> npt.NDArray[np.int32]:
        """What the decoder takes: visual position number `row` holds ``vocab_size + row``, its row of the prompt table.

        Args:
            vocab_size: The engine's vocabulary (embedding rows), not the tokenizer's size.
        """
        ids = np.asarray(self.input_ids, dtype=np.int32)
        ids[list(self.visual_positions)] = vocab_size + np.arange(self.num_visual_tokens, dtype=np.int32)
        return ids

    def check_length(self, limit: int) -> None:
        """Refuse a prompt that an engine cannot take.

        Args:
            limit: The engine's `max_input_len`.

        Raises:
            PromptError: with the count and the limit.
        """
        check_prompt_length(len(self.input_ids), self.num_visual_tokens, limit)


def check_prompt_length(tokens: int, visual: int, limit: int, *, more: bool = False) -> None:
    """Refuse a prompt that an engine cannot take.

    Args:
        tokens: Its tokens, visual ones included.
        visual: Visual ones among them.
        limit: The engine's `max_input_len`.
        more: Whether there are more tokens, which nobody has counted.

    Raises:
        PromptError: with the count and the limit.
    """
    if tokens > limit:
        raise PromptError(
            "the prompt is longer than the engine",
            seen=f"{tokens} tokens{' or more' if more else ''}, {visual} of them visual",
            expected=f"at most {limit}",
            fix="shorten the text, send fewer images, or lower max_tiles",
        )


def build_prompt(
    tokenizer: NvlmTokenizer,
    tokens_per_tile: int,
    question: str,
    *,
    tiles: Sequence[int] = (),
    history: Sequence[Turn] = (),
    system: str | None = None,
    tags: TileTags = tile_tags,
    limit: int | None = None,
) -> Prompt:
    """Build the prompt of one request.

    Where a conversation has images and no ``<image>`` at all, one ``<image>`` and a newline per image are put in front
    of the question (the release does so for one image). With fewer ``<image>`` than images the request is refused; one
    ``<image>`` too many stays text, as in the release.

    Args:
        tokenizer: The checkpoint's tokenizer.
        tokens_per_tile: Visual tokens a tile (256).
        question: The user's new message.
        tiles: Tiles of each image, thumbnail included, in the order of the ``<image>`` placeholders.
        history: Earlier questions and answers, oldest first.
        system: The system message; None for the release's own.
        tags: The text in front of each tile; others than the model was trained with are for ablations.
        limit: Tokens from which on nothing more needs to be counted.

    Raises:
        PromptError: there are more images than placeholders, a long text alone is beyond the limit, or a text holds
            half a surrogate pair.
    """
    system = DEFAULT_SYSTEM if system is None else system
    said = [system, *(message for turn in history for message in turn), question]
    if not all(map(is_whole, said)):
        raise PromptError(
            "the prompt holds half a surrogate pair, or bytes that are no UTF-8", expected="whole characters"
        )
    placeholders = sum(message.count(IMAGE_PLACEHOLDER) for message in said)
    if tiles and not placeholders:
        question = f"{IMAGE_PLACEHOLDER}\n" * len(tiles) + question
    elif len(tiles) > placeholders:
        raise PromptError(
            "there are more images than <image> placeholders",
            seen=f"{len(tiles)} images, {placeholders} placeholders",
            fix="write <image> once for each image, or nowhere",
        )
    pieces = list(_expand(_template(system, history, question), tiles, tokens_per_tile, tags))
    return _tokenise(tokenizer, pieces, tuple(tiles), limit)


def _template(system: str, history: Sequence[Turn], question: str) -> Iterator[Piece]:
    """The chatml template of conversation.py (style MPT, separator ``<|im_end|>``)."""
    yield from (Special(START_OF_TURN), f"system\n{system}", Special(END_OF_TURN))
    for role, message in [pair for old in history for pair in (("user", old[0]), ("assistant", old[1]))]:
        yield from _turn(role, message)
    yield from _turn("user", question)
    yield from _turn("assistant", "")


def _turn(role: str, message: str) -> Iterator[Piece]:
    """One message; an empty one has no separator: that is how the source opens the assistant's turn."""
    yield from (Special(START_OF_TURN), f"{role}\n{message}")
    if message:
        yield Special(END_OF_TURN)


def _expand(pieces: Iterator[Piece], tiles: Sequence[int], tokens_per_tile: int, tags: TileTags) -> Iterator[Piece]:
    """Replace the i-th placeholder of the conversation by image i."""
    waiting = list(tiles)
    for piece in pieces:
        if isinstance(piece, Special):
            yield piece
            continue
        before, *after = piece.split(IMAGE_PLACEHOLDER)
        yield before
        for text in after:
            if waiting:
                yield from _image(tags(waiting.pop(0)), tokens_per_tile)
                yield text
            else:
                yield IMAGE_PLACEHOLDER + text


def _image(tags: Sequence[str], tokens_per_tile: int) -> Iterator[Piece]:
    yield "<Image>"
    for tag in tags:
        yield tag
        yield from [Special(VISION_PAD)] * tokens_per_tile
    yield "</Image>"


def _tokenise(tokenizer: NvlmTokenizer, pieces: Sequence[Piece], tiles: tuple[int, ...], limit: int | None) -> Prompt:
    """Tokenise each stretch of text between special tokens as a whole."""
    ids: list[int] = []
    visual: list[int] = []
    stretch: list[str] = []

    def tokenise_stretch() -> None:
        if not stretch:  # as between any two visual tokens, where the tokenizer took most of the time
            return
        text = "".join(stretch)
        stretch.clear()
        ids.extend(tokenizer.encode_text(text, at_most=None if limit is None else max(0, limit - len(ids))))
        if limit is not None and len(text) >= LONG_TEXT:
            check_prompt_length(len(ids), len(visual), limit, more=True)

    for piece in pieces:
        if isinstance(piece, str):
            stretch.append(piece)
            continue
        tokenise_stretch()
        if piece.text == VISION_PAD:
            visual.append(len(ids))
        ids.append(tokenizer.special_id(piece.text))
    tokenise_stretch()
    text = "".join(piece.text if isinstance(piece, Special) else piece for piece in pieces)
    return Prompt(text, tuple(ids), tiles, len(visual), tuple(visual))

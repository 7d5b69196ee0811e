"""Qwen2's byte-level BPE, with the special tokens kept out of reach of user text.

Hugging Face splits a text at its special tokens before anything else, so encoding the stretches between them one by
one gives the same ids. This class encodes such stretches only: a special token typed by a user stays plain text, and
the prompt builder inserts the real ones by id. Added tokens that are not special (<tool_call> ...) behave as released.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from nvlm_trt.errors import CheckpointError

END_OF_TURN = "<|im_end|>"
START_OF_TURN = "<|im_start|>"
VISION_PAD = "<|vision_pad|>"
REQUIRED_SPECIALS = (START_OF_TURN, END_OF_TURN, VISION_PAD)

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's pre-tokenisation (transformers, tokenization_qwen2.py)."""

LONG_TEXT = 4096
"""Characters from which a text is tokenised while other threads go on: it takes milliseconds, of megabytes seconds."""

STRETCH = 1 << 16
"""Characters of a long text that are tokenised together."""

KNOWN_LETTERS = r"A-Za-z\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3"
"""Latin letters, kana, ideographs and Hangul: those that are letters to every version of Unicode."""

BREAK = re.compile(
    rf"(?<=[0-9{KNOWN_LETTERS}])(?=[\t\n\r !-/0-9:;?@\u3001\u3002\uff01\uff0c\uff1f])"  # ends a word
    r"|(?<=[0-9])(?=[A-Za-z])"  # a digit stands alone
    r"|(?<=\n)(?=[!-~])"
)
"""Where `QWEN2_SPLIT` always splits, whatever stands before and behind: a text may be cut there. What follows changes
nothing before it when it is normalised, and is within no added token."""

COMPOSED_END = "\u226f"
"""What normalising makes of the end of an added token, ``>``, and a stroke behind it; tokens are looked for before."""

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
"""A batch of one text needs no threads, and a process that has used them is warned of at every fork."""

FILES = ("vocab.json", "merges.txt", "tokenizer_config.json")


def _stretches(text: str) -> Iterator[str]:
    begin = 0
    while cut := BREAK.search(text, begin + STRETCH):
        yield text[begin : cut.start()]
        begin = cut.start()
    yield text[begin:]


class NvlmTokenizer:
    """Text to ids and back.

    Args:
        bpe: The byte-level BPE with its added tokens, told to read special tokens in a text as plain text.
        specials: Id of every special token by its text.
    """

    def __init__(self, bpe: Tokenizer, specials: Mapping[str, int]) -> None:
        missing = [text for text in REQUIRED_SPECIALS if text not in specials]
        if missing:
            raise CheckpointError("the tokenizer lacks tokens of Qwen2", seen=sorted(specials), expected=missing)
        self._bpe = bpe
        self._specials = dict(specials)
        self.special_ids = frozenset(specials.values())
        self.start_of_turn_id = specials[START_OF_TURN]
        self.eos_id = specials[END_OF_TURN]
        self.vision_pad_id = specials[VISION_PAD]
        self._longest = max(map(len, bpe.get_vocab()))

    @classmethod
    def load(cls, directory: Path) -> NvlmTokenizer:
        """Read vocab.json, merges.txt and tokenizer_config.json of a checkpoint or engine directory.

        Raises:
            CheckpointError: a file is absent or damaged, or a special token of Qwen2 is not there.
        """
        try:
            vocabulary = json.loads((directory / "vocab.json").read_text(encoding="utf-8"))
            merges = read_merges((directory / "merges.txt").read_text(encoding="utf-8"))
            settings = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
            added = {int(index): dict(token) for index, token in settings["added_tokens_decoder"].items()}
            bpe = build_bpe(vocabulary, merges, added)
        except FileNotFoundError as error:
            name = Path(str(error.filename)).name
            raise CheckpointError("a tokenizer file is missing", seen=f"no {name}", expected=", ".join(FILES)) from None
        except Exception as error:  # tokenizers raises bare Exception for a merge that is not in the vocabulary
            raise CheckpointError(f"the tokenizer cannot be read ({error})", seen=directory.name) from None
        return cls(bpe, {str(token["content"]): index for index, token in added.items() if token.get("special")})

    @property
    def largest_id(self) -> int:
        """The largest id of a token, added ones included."""
        return max(self._bpe.get_vocab().values())

    def encode_text(self, text: str, *, at_most: int | None = None) -> list[int]:
        """Ids of a stretch of text that holds no special token; one typed in it is plain text.

        Args:
            text: The text.
            at_most: Ids that there is room for. Of a long text with more, more than so many come, but not all: what
                does not fit costs no more than what does.
        """
        if len(text) < LONG_TEXT:
            return list(self._bpe.encode(text, add_special_tokens=False).ids)
        if at_most is not None:
            text = self._beginning(text, at_most)
        ids: list[int] = []
        for stretch in _stretches(text):
            ids += self._bpe.encode_batch([stretch], add_special_tokens=False)[0].ids  # holds no interpreter lock
            if at_most is not None and len(ids) > at_most:
                break
        return ids

    def _beginning(self, text: str, at_most: int) -> str:
        """A text without most of what comes after its first `at_most` ids; a text that fits as it is.

        One stretch may be as long as the text: to tokenise it takes seconds, and hundreds of bytes for each character.
        """
        text = text[: 2 * (at_most + 1) * self._longest]  # twice, because normalising may make a text a little shorter
        normal = unicodedata.normalize("NFC", text)
        least = 0.0
        for end in range(STRETCH, len(normal), STRETCH):
            least += self._least_ids(normal[end - STRETCH : end])
            if least > at_most + 1:  # one for what is lost in rounding
                return normal[:end]
        return text

    def _least_ids(self, text: str) -> float:
        """Ids that stand for a part of a normalised text at least, whatever stands around it.

        A byte within the longest piece that holds it with the byte before or behind is that part of an id or more.
        """
        least = 0.0
        for part in text.split(COMPOSED_END):
            codes = np.frombuffer(part.encode(), np.uint8)
            longest = self._longest_with[codes[:-1], codes[1:]]
            least += float((1 / np.maximum(longest[:-1], longest[1:])).sum())
        return least

    @cached_property
    def _longest_with(self) -> npt.NDArray[np.int64]:
        """Bytes of the longest piece that holds two bytes in a row."""
        pieces = [self.token_bytes(index) for index in self._bpe.get_vocab().values()]
        codes = np.frombuffer(b"".join(pieces), np.uint8)
        lengths = np.array([len(piece) for piece in pieces])
        numbers = np.repeat(np.arange(len(pieces)), lengths)
        within = numbers[:-1] == numbers[1:]
        longest = np.ones((256, 256), np.int64)
        np.maximum.at(longest, (codes[:-1][within], codes[1:][within]), lengths[numbers[:-1][within]])
        return longest

    def special_id(self, text: str) -> int:
        """Id of a special token.

        Raises:
            CheckpointError: the tokenizer has no such special token.
        """
        try:
            return self._specials[text]
        except KeyError:
            raise CheckpointError("the tokenizer has no such special token", seen=text) from None

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of a sequence of ids; bytes that form no character become U+FFFD, ids beyond the vocabulary vanish."""
        return str(self._bpe.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def token_bytes(self, index: int) -> bytes:
        """The bytes that one id stands for; empty for special tokens and ids beyond the vocabulary."""
        piece = None if index in self.special_ids else self._bpe.id_to_token(index)
        if piece is None:
            return b""
        if all(character in _BYTE_OF for character in piece):
            return bytes(_BYTE_OF[character] for character in piece)
        return piece.encode()  # an added token is stored as its own text


def build_bpe(
    vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], added: Mapping[int, Mapping[str, object]]
) -> Tokenizer:
    """A byte-level BPE with Qwen2's normalisation and split.

    Args:
        vocabulary: Id of every BPE piece (vocab.json).
        merges: Merges by rank (merges.txt).
        added: ``added_tokens_decoder`` of tokenizer_config.json, special tokens and others.
    """
    # An added token found in the vocabulary keeps that id; otherwise it would be numbered from the vocabulary's end on.
    pieces = {**vocabulary, **{str(token["content"]): index for index, token in added.items()}}
    bpe = Tokenizer(BPE(vocab=pieces, merges=list(merges), fuse_unk=False, byte_fallback=False))
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.add_tokens([_added_token(added[index]) for index in sorted(added)])
    bpe.encode_special_tokens = True
    return bpe


def read_merges(text: str) -> list[tuple[str, str]]:
    """The pairs of a merges.txt, best rank first."""
    merges = []
    for line in text.split("\n"):
        if line and not line.startswith("#version:"):
            left, right = line.split(" ")
            merges.append((left, right))
    return merges


def _added_token(token: Mapping[str, object]) -> AddedToken:
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(str(token["content"]), **{name: bool(token.get(name, False)) for name in names})


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in of every byte, inverted (transformers, bytes_to_unicode)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    shifted = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(shifted)}


_BYTE_OF = _byte_alphabet()

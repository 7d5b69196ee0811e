"""Text of a growing sequence of ids, in pieces whose concatenation is the decoded whole, byte for byte."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from nvlm_trt.model.tokenizer import NvlmTokenizer


class IncrementalDetokenizer:
    """Decodes ids as they come; a character whose bytes span several tokens is held back until it is whole.

    The joined pieces, with the one of `flush`, equal ``tokenizer.decode(all ids)``: both replace bytes that form no
    character by U+FFFD, one for each maximal subpart (Unicode standard, section 3.9).
    """

    def __init__(self, tokenizer: NvlmTokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Iterable[int]) -> str:
        """Text that these ids complete; special tokens give none."""
        return self._decoder.decode(b"".join(self._tokenizer.token_bytes(index) for index in ids))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed."""
        return self._decoder.decode(b"", final=True)

"""Names for the full blocks of a sequence, by content: equal names mean equal prefixes.

The name of a block covers everything that its keys and values depend on: all that stands before it (through the name of
the block before), its tokens, and at visual positions the rows of the request's own prompt table, never their numbers.
So two images behind equal prompts have different names, one image cut into other tiles shares only what is truly the
same, and one image at another place of the table is still found. TensorRT-LLM keys its blocks likewise, with a digest
of the image for `prompt_table_extra_ids`; here the rows themselves are at hand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

VISUAL = -1
"""Stands for every visual token among a block's tokens; what it is, its row says."""

NO_ROWS = hashlib.sha256().digest()
"""The digest of a block without visual tokens."""


class PrefixKeys:
    """The names of a growing sequence's full blocks.

    Making it reads the whole prompt table (about 2 GB/s, without the interpreter's lock); nothing of it is kept.

    Args:
        input_ids: int32 [tokens] of the prompt; an id at or above vocab_size is row ``id - vocab_size`` of the table.
        table: float32 [rows, hidden], or None where no id refers to one.
        vocab_size: The first visual id.
        block_size: Tokens in a block.
    """

    def __init__(
        self,
        input_ids: npt.NDArray[np.int32],
        table: npt.NDArray[np.float32] | None,
        vocab_size: int,
        block_size: int,
    ) -> None:
        self._block_size = block_size
        self._keys: list[bytes] = []
        tail = len(input_ids) - len(input_ids) % block_size
        for start in range(0, tail, block_size):
            block = input_ids[start : start + block_size]
            self._name(_tokens(block, vocab_size), _rows_digest(block, table, vocab_size))
        rest = input_ids[tail:]
        self._open = _tokens(rest, vocab_size).tolist()
        self._open_rows = _rows_digest(rest, table, vocab_size)

    def of(self, tokens: int) -> Sequence[bytes]:
        """The names of the blocks that the first `tokens` tokens fill, 32 bytes each, first block first."""
        return self._keys[: tokens // self._block_size]

    def push(self, token: int) -> None:
        """Take in the next token of the answer."""
        self._open.append(token)
        if len(self._open) == self._block_size:
            self._name(np.array(self._open, np.int32), self._open_rows)
            self._open, self._open_rows = [], NO_ROWS

    def _name(self, tokens: npt.NDArray[np.int32], rows: bytes) -> None:
        before = self._keys[-1] if self._keys else b""
        self._keys.append(hashlib.sha256(before + tokens.tobytes() + rows).digest())


def _tokens(ids: npt.NDArray[np.int32], vocab_size: int) -> npt.NDArray[np.int32]:
    return np.where(ids < vocab_size, ids, np.int32(VISUAL)).astype(np.int32)


def _rows_digest(ids: npt.NDArray[np.int32], table: npt.NDArray[np.float32] | None, vocab_size: int) -> bytes:
    rows = ids[ids >= vocab_size] - vocab_size
    if table is None or not len(rows):
        return NO_ROWS
    return hashlib.sha256(np.ascontiguousarray(table[rows]).data).digest()

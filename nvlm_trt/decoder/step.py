"""What a sequence brings to one step of the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class StepPart:
    """The part of one sequence.

    Attributes:
        input_ids: int32 [n], n >= 1; ids at or above vocab_size are rows of `table`.
        past: Tokens of the sequence already in the cache.
        blocks: All cache blocks of the sequence, in order.
        table: float32 [rows, hidden], or None.
        wants_logits: Whether the last position's logits are needed.
    """

    input_ids: npt.NDArray[np.int32]
    past: int
    blocks: Sequence[int]
    table: npt.NDArray[np.float32] | None
    wants_logits: bool

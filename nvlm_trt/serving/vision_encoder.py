"""Run the tiles of several requests through the vision encoder as one batch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Tiles = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.float32]

log = logging.getLogger(__name__)


class Encoder(Protocol):
    """What is needed of `nvlm_trt.vision.runner.VisionRunner`."""

    def encode(self, tiles: Tiles) -> Rows:
        """Rows float32 [n, tokens_per_tile, hidden] of tiles uint8 [n, s, s, 3]."""


def encode_batch(encoder: Encoder, requests: Sequence[Tiles]) -> list[Rows | Exception]:
    """Encode the tiles of each request.

    Args:
        encoder: The vision encoder.
        requests: uint8 [n, s, s, 3] of each request.

    Returns:
        For each request its rows, or the exception that its own tiles raised: where a batch fails, every request of
        it is tried alone, so that a bad one harms no other.
    """
    try:
        whole = encoder.encode(np.concatenate(requests))
    except Exception as error:
        log.exception("a batch of %d requests failed", len(requests))
        return [error] if len(requests) == 1 else [encode_batch(encoder, [one])[0] for one in requests]
    ends = np.cumsum([len(tiles) for tiles in requests])
    return list(np.split(whole, ends[:-1]))


def as_table(rows: Rows) -> Rows:
    """Rows by tile [n, tokens_per_tile, hidden] as the decoder's table [1, n * tokens_per_tile, hidden]; no copy."""
    return rows.reshape(1, -1, rows.shape[-1])

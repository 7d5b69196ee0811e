"""What is judged by its logits: the reference, a compiled engine, or a converted checkpoint emulated in torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch

from nvlm_trt.model.reference.decoder import DecoderReference
from nvlm_trt.verify import sharded
from nvlm_trt.verify.golden import forced_logits, reference_logits

if TYPE_CHECKING:
    from nvlm_trt.decoder.session_cpu import DecoderSession  # needs OpenVINO, which the image for GPUs has not

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Forced:
    """A request and the answer whose tokens are put behind it.

    Attributes:
        ids: int32 [t], visual ids from vocab_size up.
        table: float32 [rows, hidden] prompt table; None for text.
        answer: At least one token; all but the last one are fed.
    """

    ids: npt.NDArray[np.int32]
    table: Floats | None
    answer: Sequence[int]


class Subject(Protocol):
    """A decoder that can be asked what it would say at every place of a given answer."""

    def logits(self, requests: Sequence[Forced]) -> list[torch.Tensor]:
        """Before each token of each answer, float32 [len(answer), vocab_size]."""


@dataclass(frozen=True, slots=True)
class ReferenceSubject:
    """The decoder in torch."""

    decoder: DecoderReference

    def logits(self, requests: Sequence[Forced]) -> list[torch.Tensor]:
        """See `Subject`."""
        return [
            torch.from_numpy(reference_logits(self.decoder, each.ids, each.table, each.answer)) for each in requests
        ]


@dataclass(frozen=True, slots=True)
class SessionSubject:
    """A compiled decoder of the cpu target, whose cache holds the longest request and its answer."""

    session: DecoderSession
    block_size: int

    def logits(self, requests: Sequence[Forced]) -> list[torch.Tensor]:
        """See `Subject`."""
        return [
            torch.from_numpy(
                np.stack(list(forced_logits(self.session, each.ids, each.table, each.answer, self.block_size)))
            )
            for each in requests
        ]


@dataclass(frozen=True, slots=True)
class RanksSubject:
    """A converted decoder, all of its ranks together in the arithmetic of its precision (nvlm_trt/emulation).

    An emulation: what TensorRT-LLM's kernels round beyond that is left out.
    """

    directory: Path
    timeout: float

    def logits(self, requests: Sequence[Forced]) -> list[torch.Tensor]:
        """See `Subject`."""
        prompts: list[sharded.Prompt] = [
            (np.concatenate([each.ids, np.asarray(each.answer[:-1], np.int32)]), each.table) for each in requests
        ]
        logits = sharded.run_sharded(self.directory, prompts, timeout=self.timeout)
        return [rows[len(each.ids) - 1 :] for rows, each in zip(logits, requests, strict=True)]

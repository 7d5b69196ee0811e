"""A decoder in a precision of the gpu target, run in torch: what the precision costs in answers, without a GPU.

The decoder is converted as for TensorRT-LLM, with the scales of a calibration, and the converted file is run in the
arithmetic of its precision (nvlm_trt/emulation/arithmetic.py). What TensorRT's kernels round beyond that is not
emulated; the vision encoder has an emulation of its own (nvlm_trt/emulation/vision.py).
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch

from nvlm_trt.decoder.convert import convert_decoder
from nvlm_trt.decoder.precision import Precision
from nvlm_trt.emulation.rank import RankDecoder
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.decoder import DecoderReference, Ids, Table


def emulated_decoder(
    checkpoint: Checkpoint,
    precision: Precision,
    work_dir: Path,
    *,
    calibration: Path | None = None,
    column_blocks: int = 1,
) -> EmulatedDecoder:
    """Convert the decoder of a checkpoint to one rank in `work_dir`, and open it.

    Args:
        checkpoint: The source.
        precision: What it is converted to.
        work_dir: Where the converted checkpoint goes; kept as long as the decoder is used.
        calibration: What the stage decoder-calibrate leaves, for a precision that needs it.
        column_blocks: Ranks (tp) of the real build, which have scales of their own where trtllm-build quantises.

    Raises:
        RecipeError: the shapes do not allow the precision, or it needs a calibration.
        CheckpointError: the source or the calibration cannot be read.
    """
    convert_decoder(checkpoint, work_dir, tp=1, pp=1, precision=precision, calibration=calibration)
    return EmulatedDecoder(checkpoint, work_dir, column_blocks=column_blocks)


class EmulatedDecoder:
    """A TensorRT-LLM checkpoint of one rank that answers greedily.

    It has no KV cache. The float32 reference drafts the answer, the emulated decoder reads draft and prompt at once and
    keeps what it would have said itself; its own greedy answer comes out, in a few passes in place of one a token.

    Args:
        checkpoint: The source of the conversion, which drafts.
        trtllm_dir: The converted checkpoint, tp 1 and pp 1.
        column_blocks: See `RankDecoder`.
    """

    def __init__(self, checkpoint: Checkpoint, trtllm_dir: Path, *, column_blocks: int = 1) -> None:
        self._draft = DecoderReference(checkpoint)
        self._rank = RankDecoder(trtllm_dir, 0, _Alone(), column_blocks=column_blocks)

    def greedy(self, ids: Ids, table: Table = None, *, max_tokens: int, stop_ids: Collection[int] = ()) -> list[int]:
        """See `DecoderReference.greedy`."""
        answer: list[int] = []
        while len(answer) < max_tokens:
            said = np.concatenate([np.asarray(ids, np.int32), np.asarray(answer, np.int32)])
            draft = self._draft.greedy(said, table, max_tokens=max_tokens - len(answer), stop_ids=stop_ids)
            for place, token in enumerate(self._choices(said, draft, table)):
                if token in stop_ids:
                    return answer
                answer.append(token)
                if place == len(draft) or token != draft[place]:
                    break
        return answer[:max_tokens]

    def _choices(self, said: Ids, draft: list[int], table: Table) -> list[int]:
        """The best token after what was said, and after each token of the draft: len(draft) + 1 of them."""
        forced = torch.as_tensor(np.concatenate([said, np.asarray(draft, np.int32)]).astype(np.int64))
        rows = None if table is None else torch.as_tensor(table).float()
        with torch.inference_mode():
            logits = self._rank.logits(forced, rows)
        assert logits is not None  # one rank is the last stage too
        return [int(token) for token in logits[len(said) - 1 :].argmax(dim=-1)]


class _Alone:
    """The collectives of a rank without others."""

    def all_reduce(self, partial: torch.Tensor) -> torch.Tensor:
        return partial

    def all_gather(self, part: torch.Tensor) -> torch.Tensor:
        return part

    def receive(self, shape: tuple[int, ...]) -> torch.Tensor:
        raise NotImplementedError

    def send(self, hidden: torch.Tensor) -> None:
        raise NotImplementedError

"""The torch reference where a subject wants it: on the CPU as it is, or with weights and arithmetic on a GPU.

nvlm_trt/model/reference knows no devices. There every tensor comes from the checkpoint, from the tiles, or is made on
the spot; here the first are read into the GPU one by one, the second are copied, the third are made there by torch's
default device. The CPU gets the plain classes: a default device costs time in every call.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from nvlm_trt.bench.record import Device
from nvlm_trt.bench.work import REFERENCE_DTYPES
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.decoder import DecoderReference, Ids, Table
from nvlm_trt.model.reference.vision import VisionReference


def open_reference(checkpoint: Path, dtype: str, device: Device) -> tuple[VisionReference, DecoderReference]:
    """Both parts of a checkpoint, all weights read.

    Args:
        checkpoint: An NVLM-D directory.
        dtype: "fp32" or "bf16", of weights and arithmetic.
        device: Where; "cuda" is the first GPU.

    Raises:
        CheckpointError: it cannot be read.
    """
    opened, arithmetic = Checkpoint.open(checkpoint), REFERENCE_DTYPES[dtype].torch
    if device == "cpu":
        return VisionReference(opened, arithmetic), DecoderReference(opened, arithmetic)
    placed = PlacedCheckpoint(opened, torch.device(device))
    return PlacedVision(placed, arithmetic), PlacedDecoder(placed, arithmetic)


class PlacedCheckpoint(Checkpoint):
    """A checkpoint whose tensors are read into a device.

    Args:
        opened: The checkpoint.
        device: Where its tensors go.
    """

    def __init__(self, opened: Checkpoint, device: torch.device) -> None:
        super().__init__(opened.path, opened.config, opened.tensors)
        self._device = device

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Read one tensor, cast to `dtype` if given."""
        return super().read(name, dtype).to(self._device)


class PlacedVision(VisionReference):
    """Tiles to prompt-table rows on the device of its weights."""

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Patches of pixels that come from the host: [n, 3, s, s] -> [n, 1 + patches, hidden]."""
        return super().embed(pixels.to(_device_of(self._weights)))


class PlacedDecoder(DecoderReference):
    """Ids and a prompt table to tokens on the device of its weights."""

    def logits(self, ids: Ids, table: Table = None) -> torch.Tensor:
        """Logits of every position, float32 [t, vocab_size]."""
        with _device_of(self._weights):
            return super().logits(ids, table)

    def greedy_steps(
        self, ids: Ids, table: Table = None, *, max_tokens: int, stop_ids: Collection[int] = ()
    ) -> list[tuple[int, torch.Tensor]]:
        """Greedy tokens and the logits that each was taken from."""
        with _device_of(self._weights):
            return super().greedy_steps(ids, table, max_tokens=max_tokens, stop_ids=stop_ids)


def _device_of(weights: Mapping[str, torch.Tensor]) -> torch.device:
    return next(iter(weights.values())).device

"""What is kept of a decoder layer's inputs while samples go by: figures a channel, and a few rows."""

from __future__ import annotations

import torch

from nvlm_trt.decoder.calibration_layer import KV, LINEARS


class LayerStatistics:
    """Of all linear layers of one decoder layer, and of its keys and values.

    Args:
        total: Tokens that will come, over all samples.
        keep: Tokens to keep the inputs of, at most.
    """

    def __init__(self, total: int, keep: int) -> None:
        self.inputs = {name: InputStatistics(total, keep) for name in LINEARS}
        self._kv_amax = torch.zeros(1)

    def observe(self, name: str, x: torch.Tensor) -> None:
        """Take what `DecoderLayer` shows."""
        if name == KV:
            self._kv_amax = torch.maximum(self._kv_amax.to(x.device), x.abs().max().float())
        else:
            self.inputs[name].add(x)

    @property
    def kv_amax(self) -> torch.Tensor:
        """Largest absolute key or value, float32 [1]."""
        return self._kv_amax


class InputStatistics:
    """Of all inputs of one linear layer the largest and the mean absolute value a channel, and some whole rows.

    Args:
        total: Rows that will come, over all samples.
        keep: Rows to keep of them, at most; they are spread evenly over all.
    """

    def __init__(self, total: int, keep: int) -> None:
        keep = min(total, keep)
        self._wanted = torch.tensor([index * total // keep for index in range(keep)], dtype=torch.int64)
        self._count = 0
        self._amax = torch.zeros(1)
        self._sum = torch.zeros(1, dtype=torch.float64)
        self._rows: list[torch.Tensor] = []

    def add(self, x: torch.Tensor) -> None:
        """Take the next rows, [t, in]."""
        size = x.abs()
        self._amax = torch.maximum(self._amax.to(x.device), size.amax(dim=0).float())
        self._sum = self._sum.to(x.device) + size.sum(dim=0, dtype=torch.float32)
        local = self._wanted[(self._wanted >= self._count) & (self._wanted < self._count + len(x))] - self._count
        self._rows.append(x[local.to(x.device)])
        self._count += len(x)

    @property
    def amax(self) -> torch.Tensor:
        """Largest absolute value of each channel, float32 [in]."""
        return self._amax

    @property
    def mean(self) -> torch.Tensor:
        """Mean absolute value of each channel, float32 [in]."""
        return (self._sum / self._count).float()

    @property
    def rows(self) -> torch.Tensor:
        """The rows that were kept, [rows, in], in the inputs' dtype."""
        return torch.cat(self._rows)

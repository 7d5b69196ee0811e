"""Triton model `prompt_table`: the ensemble's step from rows by tile to one table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nvlm_trt.serving.config_parts import FEATURES, TABLE
from nvlm_trt.serving.models.base import Model, each
from nvlm_trt.serving.models.tensors import inputs_of, response
from nvlm_trt.serving.vision_encoder import as_table


class TritonPythonModel(Model):
    """Reshapes [n, tokens_per_tile, hidden] to [1, n * tokens_per_tile, hidden]."""

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Reshape."""
        return each(requests, lambda request: response({TABLE: as_table(inputs_of(request, [FEATURES])[FEATURES])}))

"""Triton model `selftest`: echoes its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nvlm_trt.serving.models.base import Model
from nvlm_trt.serving.models.tensors import inputs_of, response


class TritonPythonModel(Model):
    """What goes in comes out, under the name ``<dtype>_out``."""

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Echo."""
        return self.each(requests, self._echo)

    def _echo(self, request: Any) -> Any:
        tensors = inputs_of(request, self.input_names)
        return response({name.replace("_in", "_out"): values for name, values in tensors.items()})

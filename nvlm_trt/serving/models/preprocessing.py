"""Triton model `preprocessing`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nvlm_trt.engine_files import TOKENIZER
from nvlm_trt.model.pixels import keep_image_memory
from nvlm_trt.model.tokenizer import NvlmTokenizer
from nvlm_trt.serving.fields import REQUEST_FIELDS, refuse_unknown
from nvlm_trt.serving.models.base import Model
from nvlm_trt.serving.models.tensors import inputs_of, parameters, response
from nvlm_trt.serving.preprocessing import Preprocessor


class TritonPythonModel(Model):
    """Fields of a request to tiles, ids and sampling values."""

    def load(self) -> None:
        """Load the tokenizer; this process has nothing else to do than to read images and text."""
        self.preprocessor = Preprocessor(self.spec, NvlmTokenizer.load(self.engine_dir / TOKENIZER))
        keep_image_memory(self.preprocessor.threads, self.spec.max_image_pixels)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Prepare requests, each by itself."""
        return self.each(requests, self._prepare)

    def _prepare(self, request: Any) -> Any:
        refuse_unknown(parameters(request), REQUEST_FIELDS)
        return response(self.preprocessor.run(inputs_of(request, self.input_names), request.requested_output_names()))

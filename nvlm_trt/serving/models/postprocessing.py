"""Triton model `postprocessing`: the ensemble's last step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nvlm_trt.engine_files import TOKENIZER
from nvlm_trt.model.tokenizer import NvlmTokenizer
from nvlm_trt.serving.models.base import Model
from nvlm_trt.serving.models.tensors import inputs_of, response, texts
from nvlm_trt.serving.postprocessing import answer


class TritonPythonModel(Model):
    """Ids of an answer to its text."""

    def load(self) -> None:
        """Load the tokenizer."""
        self.tokenizer = NvlmTokenizer.load(self.engine_dir / TOKENIZER)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Decode answers, each by itself."""
        return self.each(requests, self._decode)

    def _decode(self, request: Any) -> Any:
        text, count = answer(self.tokenizer, **inputs_of(request, self.input_names))
        return response({"text_output": texts(text)[np.newaxis], "num_output_tokens": np.array([[count]], np.int32)})

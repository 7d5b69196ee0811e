"""Triton model `vision_encoder` of the cpu target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nvlm_trt.serving.config_parts import FEATURES
from nvlm_trt.serving.models.base import Model
from nvlm_trt.serving.models.tensors import failure, inputs_of, response
from nvlm_trt.serving.preprocessing import TILES
from nvlm_trt.serving.vision_encoder import encode_batch
from nvlm_trt.vision.runner import VisionRunner


class TritonPythonModel(Model):
    """Tiles to rows of the prompt table; the tile count is the batch."""

    def load(self) -> None:
        """Load the compiled vision encoder."""
        self.runner = VisionRunner(self.engine_dir / "vision" / "cpu", threads=self.spec.cpu_threads)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Encode the tiles of all requests as one batch."""
        batches = [inputs_of(request, [TILES])[TILES] for request in requests]
        results = encode_batch(self.runner, batches)
        return [failure(rows) if isinstance(rows, Exception) else response({FEATURES: rows}) for rows in results]

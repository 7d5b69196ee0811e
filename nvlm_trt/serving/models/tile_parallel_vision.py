"""Triton model `tile_parallel_vision` of the gpu target: tiles of a request over the vision encoder's GPUs.

Rows are bfloat16, which numpy does not have: they come and go by DLPack. They are asked for in host memory. The C++
backend's executor sends a request to the ranks through host memory in any case (serialization.cpp, Tensor), a table on
a GPU would take memory there for as long as its request waits, and a process without a CUDA context takes none at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import torch
import triton_python_backend_utils as pb_utils

from nvlm_trt.errors import EngineError, ServerError
from nvlm_trt.serving.config_parts import FEATURES, TABLE
from nvlm_trt.serving.models.base import Model
from nvlm_trt.serving.models.tensors import failure, inputs_of, wants_codes
from nvlm_trt.serving.preprocessing import TILES
from nvlm_trt.serving.tile_parallel import tile_parts


class TritonPythonModel(Model):
    """Tiles to one prompt table [1, n * tokens_per_tile, hidden]."""

    def load(self) -> None:
        """Look at what the plan takes."""
        if self.spec.gpu is None:
            raise EngineError("the repository is of the cpu target", fix="package the engine again")
        self.gpu = self.spec.gpu

    async def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Encode requests, each by itself: one that fails answers with its own error."""
        answers = []
        for request in requests:
            with self.work.one():
                answers.append(await self._answer(request))
        return answers

    async def _answer(self, request: Any) -> Any:
        try:
            table = await self._table(inputs_of(request, [TILES])[TILES])
        except Exception as error:
            return failure(error, coded=wants_codes(request))
        return pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack(TABLE, table)])

    async def _table(self, tiles: Any) -> torch.Tensor:
        parts = tile_parts(len(tiles), self.gpu.vision_gpus, self.gpu.vision_max_tiles)
        rows = await asyncio.gather(*(self._rows(tiles[part]) for part in parts))
        return torch.cat(rows).reshape(1, -1, self.spec.hidden_size)

    async def _rows(self, tiles: Any) -> torch.Tensor:
        request = pb_utils.InferenceRequest(
            model_name="vision_encoder",
            requested_output_names=[FEATURES],
            inputs=[pb_utils.Tensor(TILES, tiles)],
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        answer = await request.async_exec()
        if answer.has_error():
            raise ServerError("the model vision_encoder failed; the server's log says why")
        (tensor,) = answer.output_tensors()
        return torch.utils.dlpack.from_dlpack(tensor.to_dlpack())

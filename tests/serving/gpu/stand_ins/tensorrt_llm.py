"""Stands in for the C++ backend: the cpu decoder behind its tensors, which notes what it was asked to stop."""

import torch
import triton_python_backend_utils as pb_utils

from nvlm_trt.serving.models import tensorrt_llm
from nvlm_trt.serving.models.tensors import inputs_of

TABLE = "prompt_embedding_table"


class TritonPythonModel(tensorrt_llm.TritonPythonModel):
    def execute(self, requests):
        for request in requests:
            tensors = inputs_of(request, [name for name in self.input_names if name != TABLE])
            table = pb_utils.get_input_tensor_by_name(request, TABLE)
            if table is not None:
                rows = torch.utils.dlpack.from_dlpack(table.to_dlpack())
                assert rows.dtype == torch.bfloat16
                tensors[TABLE] = rows.float().numpy()
            if "stop" in tensors:
                with (self.engine_dir / "stops.log").open("a") as log:
                    log.write(f"{request.request_id()}\n")
            channel = tensorrt_llm._Channel(request.get_response_sender(), pad=0)
            self.server.submit(tensors, request.request_id(), channel)

"""Stands in for TensorRT: the cpu vision encoder with bfloat16 rows, which notes what each instance encoded."""

import os
import time

import torch
import triton_python_backend_utils as pb_utils

from nvlm_trt.serving.models.base import Model
from nvlm_trt.vision.runner import VisionRunner


class TritonPythonModel(Model):
    def load(self):
        self.runner = VisionRunner(self.engine_dir / "vision" / "cpu", threads=1)

    def execute(self, requests):
        batches = [pb_utils.get_input_tensor_by_name(request, "tiles").as_numpy() for request in requests]
        with (self.engine_dir / "vision.log").open("a") as log:
            log.write(f"{os.getpid()} {' '.join(str(len(tiles)) for tiles in batches)}\n")
        if (self.engine_dir / "slow").exists():
            time.sleep(1)
        return [self._rows(tiles) for tiles in batches]

    def _rows(self, tiles):
        rows = torch.from_numpy(self.runner.encode(tiles)).to(torch.bfloat16)
        return pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("prompt_table", rows)])

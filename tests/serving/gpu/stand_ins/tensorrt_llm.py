"""Stands in for the C++ backend: the cpu decoder behind its tensors.

It notes what it was asked to stop, and how many tokens each answer had in the end.
"""

import functools

import torch
import triton_python_backend_utils as pb_utils

from nvlm_trt.decoder.engine import DecoderEngine
from nvlm_trt.serving.llm import LlmServer
from nvlm_trt.serving.models import tensorrt_llm
from nvlm_trt.serving.models.tensors import inputs_of

TABLE = "prompt_embedding_table"


class Channel(tensorrt_llm._Channel):
    def __init__(self, request, note):
        super().__init__(request, pad=0)
        self.note, self.tokens = note, 0

    def send(self, ids, *, final, log_probs=(), cached=0):
        self.tokens += len(ids)
        if final:
            self.note(self.tokens)
        super().send(ids, final=final, log_probs=log_probs)


class TritonPythonModel(tensorrt_llm.TritonPythonModel):
    def load(self):
        self.engine = DecoderEngine.load(self.engine_dir / "decoder" / "cpu", threads=1)
        self.server = LlmServer(self.engine, self.spec.vocab_size)

    def execute(self, requests):
        for request in requests:
            tensors = inputs_of(request, [name for name in self.input_names if name != TABLE])
            table = pb_utils.get_input_tensor_by_name(request, TABLE)
            if table is not None:
                rows = torch.utils.dlpack.from_dlpack(table.to_dlpack())
                assert rows.dtype == torch.bfloat16
                tensors[TABLE] = rows.float().numpy()
            name = request.request_id()
            log = self.engine_dir / ("stops.log" if "stop" in tensors else "answers.log")
            channel = Channel(request, functools.partial(write, log, name))
            self.server.submit(tensors, name, channel)


def write(log, name, tokens):
    with log.open("a") as lines:
        lines.write(f"{name} {tokens}\n")

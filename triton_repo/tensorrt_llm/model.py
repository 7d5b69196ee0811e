"""Triton model `tensorrt_llm`; its code is in nvlm_trt.serving.models.tensorrt_llm, imported from the environment on PATH."""

from nvlm_trt.serving.models.tensorrt_llm import TritonPythonModel

__all__ = ["TritonPythonModel"]

"""Triton model `tensorrt_llm`; its code comes from the environment whose bin is first on PATH."""

from nvlm_trt.serving.models.tensorrt_llm import TritonPythonModel

__all__ = ["TritonPythonModel"]

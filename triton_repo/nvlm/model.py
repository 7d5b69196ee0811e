"""Triton model `nvlm`; its code is in nvlm_trt.serving.models.nvlm, imported from the environment on PATH."""

from nvlm_trt.serving.models.nvlm import TritonPythonModel

__all__ = ["TritonPythonModel"]

"""Triton model `nvlm`; its code comes from the environment whose bin is first on PATH."""

from nvlm_trt.serving.models.nvlm import TritonPythonModel

__all__ = ["TritonPythonModel"]

"""Triton model `preprocessing`; its code comes from the environment whose bin is first on PATH."""

from nvlm_trt.serving.models.preprocessing import TritonPythonModel

__all__ = ["TritonPythonModel"]

"""Triton model `selftest`; its code comes from the environment whose bin is first on PATH."""

from nvlm_trt.serving.models.selftest import TritonPythonModel

__all__ = ["TritonPythonModel"]

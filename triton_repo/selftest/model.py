"""Triton model `selftest`; its code is in nvlm_trt.serving.models.selftest, imported from the environment on PATH."""

from nvlm_trt.serving.models.selftest import TritonPythonModel

__all__ = ["TritonPythonModel"]

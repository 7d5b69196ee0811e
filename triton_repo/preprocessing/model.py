"""Triton model `preprocessing`; its code is in nvlm_trt.serving.models.preprocessing, imported from the environment on PATH."""

from nvlm_trt.serving.models.preprocessing import TritonPythonModel

__all__ = ["TritonPythonModel"]

"""Triton model `postprocessing`; its code is in nvlm_trt.serving.models.postprocessing, imported from the environment on PATH."""

from nvlm_trt.serving.models.postprocessing import TritonPythonModel

__all__ = ["TritonPythonModel"]

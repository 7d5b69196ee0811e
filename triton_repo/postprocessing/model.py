"""Triton model `postprocessing`; its code comes from the environment whose bin is first on PATH."""

from nvlm_trt.serving.models.postprocessing import TritonPythonModel

__all__ = ["TritonPythonModel"]

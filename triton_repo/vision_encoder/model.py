"""Triton model `vision_encoder`; its code comes from the environment whose bin is first on PATH."""

from nvlm_trt.serving.models.vision_encoder import TritonPythonModel

__all__ = ["TritonPythonModel"]

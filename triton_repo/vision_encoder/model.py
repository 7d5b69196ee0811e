"""Triton model `vision_encoder`; its code is in nvlm_trt.serving.models.vision_encoder, imported from the environment on PATH."""

from nvlm_trt.serving.models.vision_encoder import TritonPythonModel

__all__ = ["TritonPythonModel"]

"""Triton model `tile_parallel_vision`; its code comes from the environment whose bin is first on PATH."""

from nvlm_trt.serving.models.tile_parallel_vision import TritonPythonModel

__all__ = ["TritonPythonModel"]

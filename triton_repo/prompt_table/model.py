"""Triton model `prompt_table`; its code comes from the environment whose bin is first on PATH."""

from nvlm_trt.serving.models.prompt_table import TritonPythonModel

__all__ = ["TritonPythonModel"]

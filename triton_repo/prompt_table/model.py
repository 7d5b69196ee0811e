"""Triton model `prompt_table`; its code is in nvlm_trt.serving.models.prompt_table, imported from the environment on PATH."""

from nvlm_trt.serving.models.prompt_table import TritonPythonModel

__all__ = ["TritonPythonModel"]

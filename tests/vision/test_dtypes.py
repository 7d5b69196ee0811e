"""The types of the vision graph, against the libraries whose words they are."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from onnx import TensorProto

from nvlm_trt.vision import dtypes
from nvlm_trt.vision.dtypes import DType


@pytest.mark.parametrize(
    ("dtype", "number", "torch_dtype"),
    [
        (dtypes.FP32, TensorProto.FLOAT, torch.float32),
        (dtypes.BF16, TensorProto.BFLOAT16, torch.bfloat16),
        (dtypes.FP16, TensorProto.FLOAT16, torch.float16),
        (dtypes.INT8, TensorProto.INT8, torch.int8),
        (dtypes.FP8, TensorProto.FLOAT8E4M3FN, torch.float8_e4m3fn),
    ],
)
def test_each_type_is_the_same_in_onnx_and_in_torch(dtype: DType, number: int, torch_dtype: torch.dtype) -> None:
    assert dtype.onnx == number
    assert dtype.torch is torch_dtype
    assert dtype.itemsize == torch_dtype.itemsize


def test_a_compiled_encoder_is_run_without_loading_torch_or_onnx() -> None:
    probe = "import sys, nvlm_trt.vision.runner; print([name for name in ('torch', 'onnx') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True).stdout == "[]\n"

"""TensorRT's Python package: which versions are taken, and its enumerations by name.

It is imported when an engine is built, never before: a machine without a GPU has none. Members of enumerations are
found by name, because their numbers change between versions (1 << 1 is STRONGLY_TYPED in 10 and
PREFER_JIT_PYTHON_PLUGINS in 11). docs/versions.md lists every name that is called, and where each was read.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

from nvlm_trt.errors import EngineError

OLDEST, NEWEST = (10, 11), (10, 16)
"""TensorRT versions whose Python API was read; 11 removed what TensorRT-LLM's own builder needs."""

PINNED = "10.14.1.48"
IMAGE = "nvcr.io/nvidia/tritonserver:26.04-trtllm-python-py3"

DTYPES = {"uint8": "UINT8", "float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}
"""TensorRT's names of the types in a vision description."""


def import_tensorrt() -> Any:
    """The package.

    Raises:
        EngineError: it is not installed, cannot be loaded, or is of a version that is not supported.
    """
    fix = f"build inside the image {IMAGE}"
    expected = f"10.11 to 10.16 (pinned: {PINNED})"
    try:
        trt = importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:
        raise EngineError("TensorRT cannot be imported", seen=error, expected=expected, fix=fix) from None
    numbers = tuple(int(number) for number in re.findall(r"\d+", trt.__version__)[:2])
    if not OLDEST <= numbers <= NEWEST:
        raise EngineError("this TensorRT is not supported", seen=trt.__version__, expected=expected, fix=fix)
    return trt


def network_flags(trt: Any) -> int:
    """Flags of a network whose precisions are those of the graph; 0 where TensorRT knows no other kind."""
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if strongly_typed is None else 1 << int(strongly_typed)


def compatibility_level(trt: Any, name: str) -> Any:
    """The member of HardwareCompatibilityLevel for a recipe's word."""
    return getattr(trt.HardwareCompatibilityLevel, name.upper())


def data_type(trt: Any, name: str) -> Any:
    """The member of DataType for the type of a tensor in a vision description."""
    return getattr(trt.DataType, DTYPES[name])

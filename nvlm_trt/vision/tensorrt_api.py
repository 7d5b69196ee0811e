"""TensorRT's Python package: which versions are taken, and its enumerations by name.

It is imported when an engine is built, never before: a machine without a GPU has none. Members of enumerations are
found by name, because their numbers change between versions (1 << 1 is STRONGLY_TYPED in 10 and
PREFER_JIT_PYTHON_PLUGINS in 11). docs/versions.md lists every name that is called, and where each was read.
"""

from __future__ import annotations

import importlib
from typing import Any

from nvlm_trt.environment.versions import TENSORRT, TENSORRT_EXPECTED, USE_IMAGE
from nvlm_trt.errors import EngineError

DTYPES = {"uint8": "UINT8", "float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}
"""TensorRT's names of the types in a vision description."""


def import_tensorrt() -> Any:
    """The package.

    Raises:
        EngineError: it is not installed, cannot be loaded, or is of a version that is not supported.
    """
    try:
        trt = importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:
        what = "TensorRT cannot be imported"
        raise EngineError(what, seen=error, expected=TENSORRT_EXPECTED, fix=USE_IMAGE) from None
    if trt.__version__ not in TENSORRT:
        what = "this TensorRT is not supported"
        raise EngineError(what, seen=trt.__version__, expected=TENSORRT_EXPECTED, fix=USE_IMAGE)
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

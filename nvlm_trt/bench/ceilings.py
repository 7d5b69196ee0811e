"""What this machine can do at best, measured beside the engines: reading memory, and products of matrices.

A product is timed through torch and, where it is installed, through OpenVINO, because neither library is the faster
one everywhere (fp32 on two cores of an AMD EPYC: torch 232, OpenVINO 452 GFLOP/s); the better one counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Final

import numpy as np
import torch

from nvlm_trt.bench.record import Device, Rate, RateName
from nvlm_trt.environment.memory import memory

READ_BYTES: Final = 1 << 30
"""Of the buffer that is read: beyond the caches of any processor."""

SIDE: Final = 2048
"""Rows and columns of the matrices: large enough for the full rate, some 20 ms at 1 TFLOP/s."""

REPEATS: Final = 5

TORCH_DTYPES: dict[RateName, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
OPENVINO_HINTS: dict[RateName, str] = {"fp32": "f32", "bf16": "bf16", "int8": "bf16"}


def measure_ceilings(device: Device = "cpu", *, side: int = SIDE, read_bytes: int = READ_BYTES) -> tuple[Rate, ...]:
    """Measure every rate once.

    Args:
        device: Where; "cuda" is the first GPU, through torch.
        side: Rows and columns of the matrices.
        read_bytes: Of the buffer that is read; no more than a quarter of the free memory of the machine is taken.
    """
    room = memory().available // 4 if device == "cpu" else read_bytes
    rates = [Rate(name="read", by="torch", per_s=_read_rate(device, min(read_bytes, room)))]
    for name, dtype in TORCH_DTYPES.items():
        rates.append(Rate(name=name, by="torch", per_s=_product_rate(_torch_product(dtype, side, device), side)))
    if device == "cpu" and find_spec("openvino") is not None:
        for name in OPENVINO_HINTS:
            rates.append(Rate(name=name, by="OpenVINO", per_s=_product_rate(_openvino_product(name, side), side)))
    return tuple(rates)


def _read_rate(device: Device, size: int) -> float:
    """Bytes a second: the sum of a float32 vector, 4 bytes for one addition."""
    values = torch.ones(size // 4, device=device)

    def add() -> None:
        float(values.sum())  # fetching the number waits for a GPU

    return values.nbytes / min(_seconds(add))


def _product_rate(multiply: Callable[[], None], side: int) -> float:
    """Operations a second of a product of square matrices: 2 x side^3 of them."""
    return float(2 * side**3 / min(_seconds(multiply)))


def _seconds(call: Callable[[], None]) -> Iterator[float]:
    call()
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        yield time.perf_counter() - started


def _torch_product(dtype: torch.dtype, side: int, device: Device) -> Callable[[], None]:
    integers = dtype == torch.int8
    values = torch.randint(-127, 128, (2, side, side)) if integers else torch.randn(2, side, side)
    a, b = values.to(device, dtype)
    product = torch._int_mm if integers else torch.matmul

    def multiply() -> None:
        product(a, b)
        if device == "cuda":
            torch.cuda.synchronize()

    return multiply


def _openvino_product(name: RateName, side: int) -> Callable[[], None]:
    """A product with a constant; for int8, one whose input is quantised on the way in, as in a quantised network."""
    import openvino as ov
    from openvino import opset15 as ops

    random = np.random.default_rng(0)
    entry = ops.parameter([side, side], np.float32)
    if name == "int8":
        low, high = np.float32(-4), np.float32(4)
        left = ops.fake_quantize(entry, low, high, low, high, 256)
        codes = ops.constant(random.integers(-127, 128, (side, side)).astype(np.int8))
        right = ops.multiply(ops.convert(codes, np.float32), ops.constant(np.float32(0.01)))
    else:
        left, right = entry, ops.constant(random.standard_normal((side, side), np.float32))
    settings = {"INFERENCE_PRECISION_HINT": OPENVINO_HINTS[name], "PERFORMANCE_HINT": "LATENCY"}
    model = ov.Model([ops.matmul(left, right, False, True)], [entry])
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    request.set_input_tensor(ov.Tensor(random.standard_normal((side, side), np.float32)))

    def multiply() -> None:
        request.infer()

    return multiply

"""Tensors and errors of the Python backend, to and from those of the logic."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from nvlm_trt.error_codes import WANTED, with_code
from nvlm_trt.serving.faults import fault_of

log = logging.getLogger("nvlm_trt.serving")

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def inputs_of(request: Any, names: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
    """The tensors that a request brings, by name."""
    tensors = {}
    for name in names:
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor is not None:
            tensors[name] = tensor.as_numpy()
    return tensors


def response(outputs: Mapping[str, npt.NDArray[Any]]) -> Any:
    """A response with these tensors."""
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, values) for name, values in outputs.items()])


def texts(*items: str) -> npt.NDArray[np.object_]:
    """A tensor of texts."""
    return np.array([item.encode() for item in items], dtype=np.object_)


def wants_codes(request: Any) -> bool:
    """Whether the text of an error is to begin with its code."""
    return bool(parameters(request).get(WANTED))


def failure(error: BaseException, *, coded: bool = False) -> Any:
    """A response that carries an error; a fault of ours is written to the server's log, a client's is not.

    Args:
        error: What went wrong.
        coded: Whether its text begins with its code (`wants_codes`).
    """
    fault = fault_of(error)
    if fault.code == "INTERNAL":
        log.error("a request failed", exc_info=error)
    message = with_code(fault.code, fault.message) if coded else fault.message
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, getattr(pb_utils.TritonError, fault.code)))


def is_cancelled(sender: Any) -> bool:
    """Whether the client of a response sender has gone; False where that cannot be told."""
    try:
        return bool(sender.is_cancelled())
    except Exception:  # one request that cannot be looked after must not leave all others alone
        log.exception("whether a request was cancelled could not be asked")
        return False


def model_directory(args: Mapping[str, str]) -> Path:
    """The directory of the model that is being initialised."""
    return Path(args["model_repository"])


def input_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of a model's inputs, from its configuration."""
    return tuple(tensor["name"] for tensor in config["input"])


def output_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of a model's outputs, from its configuration."""
    return tuple(tensor["name"] for tensor in config["output"])


def parameters(request: Any) -> dict[str, Any]:
    """A request's parameters: among them are the fields of a client's JSON that the model does not have."""
    return dict(json.loads(request.parameters() or "{}"))

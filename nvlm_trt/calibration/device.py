"""Where a calibration runs the model's layers."""

from __future__ import annotations

import torch

from nvlm_trt.errors import UserError


def calibration_device(wanted: str) -> torch.device:
    """The device that a recipe asks for: "cpu", "cuda", or "auto" for a GPU if torch sees one, else the CPU.

    Raises:
        UserError: there is no GPU.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UserError("there is no GPU to calibrate on", seen="calibration.device: cuda", fix="use auto or cpu")
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")


def give_back_memory(device: torch.device) -> None:
    """Give a GPU the memory back that torch keeps for later: other libraries of this process can use it then."""
    if device.type == "cuda":
        torch.cuda.empty_cache()

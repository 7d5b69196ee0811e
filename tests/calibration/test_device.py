"""Where a calibration runs, and that it leaves a GPU's memory to those that come after it."""

from __future__ import annotations

import pytest
import torch

from nvlm_trt.calibration.device import calibration_device, give_back_memory
from nvlm_trt.errors import UserError


@pytest.mark.parametrize(
    ("wanted", "available", "found"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("cuda", True, "cuda")],
)
def test_layers_run_on_a_gpu_if_there_is_one_unless_the_recipe_says_otherwise(
    wanted: str, available: bool, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert calibration_device(wanted).type == found


def test_a_gpu_that_is_asked_for_and_not_there_is_the_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="there is no GPU to calibrate on"):
        calibration_device("cuda")


def test_memory_of_a_gpu_alone_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    give_back_memory(torch.device("cpu"))
    assert emptied == []
    give_back_memory(torch.device("cuda"))
    assert emptied == [True]

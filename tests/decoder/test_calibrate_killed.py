"""A calibration that is killed at any moment goes on after the last finished layer and ends with the same bytes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nvlm_trt.calibration.prompts import CalibrationPrompt
from nvlm_trt.decoder import calibrate as module
from nvlm_trt.decoder.calibrate import calibrate_decoder
from nvlm_trt.decoder.calibration_layer import DecoderLayer
from nvlm_trt.decoder.precision import decoder_precision
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference import layer_stream, vision_stream

from .calibration import SETTINGS, make_prompts

PRECISION = decoder_precision("int8_sq", kv_cache="fp8")


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def checkpoint(decoder_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(decoder_checkpoint)


@pytest.fixture(scope="module")
def prompts(checkpoint: Checkpoint) -> list[CalibrationPrompt]:
    return make_prompts(checkpoint)


@pytest.fixture(scope="module")
def undisturbed(
    checkpoint: Checkpoint, prompts: list[CalibrationPrompt], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """Files of a run that was left alone."""
    root = tmp_path_factory.mktemp("undisturbed")
    calibrate_decoder(checkpoint, prompts, root / "out", root / "work", precision=PRECISION, settings=SETTINGS)
    return files_of(root / "out")


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


KILLS = [
    (vision_stream.VisionReference, "block", 5),
    (vision_stream.VisionReference, "project", 2),
    (layer_stream.HiddenStates, "_commit", 1),
    (layer_stream.SafetensorsStream, "write", 6),
    (DecoderLayer, "__call__", 3),
    (DecoderLayer, "__call__", 7),
    (module, "search_prequant", 6),
    (module, "write_results", 2),
    (layer_stream.HiddenStates, "_commit", 5),
    (module, "publish", 1),
    (shutil, "copyfile", 2),
]


@pytest.mark.parametrize(("owner", "name", "call"), KILLS)
def test_a_killed_calibration_goes_on_and_ends_with_the_same_bytes(
    checkpoint: Checkpoint,
    prompts: list[CalibrationPrompt],
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    name: str,
    call: int,
) -> None:
    original, calls = getattr(owner, name), []

    def killing(*args: object, **kwargs: object) -> object:
        calls.append(name)
        if len(calls) == call:
            raise KilledError
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, killing)
    with pytest.raises(KilledError):
        calibrate_decoder(
            checkpoint, prompts, tmp_path / "out", tmp_path / "work", precision=PRECISION, settings=SETTINGS
        )
    monkeypatch.undo()
    assert not (tmp_path / "out" / "config.json").exists()
    calibrate_decoder(checkpoint, prompts, tmp_path / "out", tmp_path / "work", precision=PRECISION, settings=SETTINGS)
    assert files_of(tmp_path / "out") == undisturbed


def test_finished_layers_are_not_run_again(
    checkpoint: Checkpoint, prompts: list[CalibrationPrompt], tmp_path: Path
) -> None:
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        if len(lines) == 2:
            raise KilledError

    def run() -> None:
        precision = decoder_precision("fp8")
        calibrate_decoder(checkpoint, prompts, tmp_path / "out", tmp_path / "work", precision=precision, log=log)

    with pytest.raises(KilledError):
        run()
    run()
    assert [line.split(":")[0] for line in lines] == ["layer 0", "layer 1", "layer 1", "layer 2"]


def test_other_samples_or_settings_do_not_take_up_the_work_of_earlier_ones(
    checkpoint: Checkpoint, prompts: list[CalibrationPrompt], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    for part, precision, settings in [
        (prompts[3:], PRECISION, SETTINGS),
        (prompts, decoder_precision("fp8"), SETTINGS),
        (prompts, PRECISION, replace(SETTINGS, alpha_step=1.0)),
    ]:
        calibrate_decoder(checkpoint, part, tmp_path / "out", tmp_path / "work", precision=precision, settings=settings)
        assert files_of(tmp_path / "out") != undisturbed
    calibrate_decoder(checkpoint, prompts, tmp_path / "out", tmp_path / "work", precision=PRECISION, settings=SETTINGS)
    assert files_of(tmp_path / "out") == undisturbed

"""A plan's shapes come from config.json alone; the release's are built in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nvlm_trt.errors import CheckpointError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.release import release_config
from nvlm_trt.plan.shapes import planned_shapes


def test_the_release_is_counted_to_the_byte() -> None:
    """`total_size` and the number of tensors of the released model.safetensors.index.json."""
    release = planned_shapes(None)
    assert (release.nbytes, len(release.tensors), release.dummy_heads) == (176_901_927_168, 1_556, 7)


def test_the_built_in_shapes_are_those_of_the_released_config(nvlm_72b: Path) -> None:
    assert planned_shapes(nvlm_72b).config == planned_shapes(None).config


def test_nothing_but_config_json_is_read(tmp_path: Path) -> None:
    config = planned_shapes(None).config
    (tmp_path / "config.json").write_text(json.dumps(release_config(config)))
    planned = planned_shapes(tmp_path)
    assert (planned.path, planned.config, planned.nbytes) == (tmp_path, config, 176_901_927_168)


def test_other_shapes_are_taken_as_they_are(tiny_checkpoint: Path) -> None:
    planned, real = planned_shapes(tiny_checkpoint), Checkpoint.open(tiny_checkpoint)
    assert planned.config == real.config
    assert planned.dummy_heads == 0
    decoder = {name: info.nbytes for name, info in real.tensors.items() if name.startswith("language_model.")}
    assert decoder == {name: planned.tensors[name].nbytes for name in decoder}


def test_a_folder_without_config_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        planned_shapes(tmp_path)

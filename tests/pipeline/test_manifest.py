"""manifest.json: what it keeps, and what happens when it cannot be read or written."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from nvlm_trt.errors import EngineError
from nvlm_trt.pipeline.digest import FileDigest
from nvlm_trt.pipeline.manifest import Manifest, StageRecord, load_manifest, recorded_checkpoint

RECORD = StageRecord(
    state="done",
    fingerprint="f" * 64,
    places=("a",),
    basis={"parts": {"precision": "bf16"}, "tools": {"onnx": "1"}},
    command="nvlm-trt build x.yaml --from a --until a",
    started="2026-01-01T00:00:00+00:00",
    outputs=(FileDigest("a/b", 3, "0" * 64),),
    seconds=1.5,
    peak_memory_bytes=7,
)


def test_a_saved_manifest_reads_back_equal(tmp_path: Path) -> None:
    manifest = Manifest({"path": "/c"}, {"onnx": "1"}).with_stage("a", RECORD)
    manifest.save(tmp_path)
    assert load_manifest(tmp_path) == manifest


def test_there_is_an_empty_manifest_where_there_is_no_file(tmp_path: Path) -> None:
    assert load_manifest(tmp_path) == Manifest()


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1}', '{"format": 1, "stages": {"a": {"state": "done"}}}'])
def test_a_directory_with_a_damaged_manifest_is_the_users_to_remove(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(EngineError, match=r"manifest\.json cannot be read") as caught:
        load_manifest(tmp_path)
    # Without the file alone no build takes the directory for its own.
    assert caught.value.fix == f"remove {tmp_path} and build"


def test_a_manifest_of_another_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(EngineError, match="of another release; seen: 2; expected: 1"):
        load_manifest(tmp_path)


def test_a_write_that_fails_leaves_the_old_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Manifest({"path": "/old"}).save(tmp_path)

    def fail(_descriptor: int) -> None:
        raise OSError(5, "I/O error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="I/O error"):
        Manifest({"path": "/new"}).save(tmp_path)
    assert load_manifest(tmp_path).checkpoint == {"path": "/old"}


def test_only_a_done_stage_vouches_for_its_outputs() -> None:
    for state in ("running", "failed"):
        manifest = Manifest().with_stage("a", dataclasses.replace(RECORD, state=state))
        assert manifest.done("a") is None
    assert Manifest().with_stage("a", RECORD).done("a") == RECORD


def test_the_checkpoint_is_the_one_inside_only_where_the_manifest_vouches_for_it(tmp_path: Path) -> None:
    inside = tmp_path / "checkpoint"
    inside.mkdir()
    manifest = Manifest({"path": "/elsewhere"})
    manifest.save(tmp_path)
    assert recorded_checkpoint(tmp_path) == Path("/elsewhere")
    manifest.with_stage("synth", dataclasses.replace(RECORD, state="failed")).save(tmp_path)
    assert recorded_checkpoint(tmp_path) == Path("/elsewhere")
    manifest.with_stage("synth", RECORD).save(tmp_path)  # and the directory was moved since
    assert recorded_checkpoint(tmp_path) == inside

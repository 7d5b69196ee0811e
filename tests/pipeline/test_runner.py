"""How the runner brings a directory up to date, with toy stages."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from nvlm_trt import durable
from nvlm_trt.errors import BuildError, CheckpointError, DoesNotFitError, UserError
from nvlm_trt.pipeline.digest import CACHE_NAME
from nvlm_trt.pipeline.manifest import load_manifest
from nvlm_trt.pipeline.stage import StageContext

ALL = ["numbers", "squares", "total"]


def test_builds_every_stage_once_and_then_skips_them(toy: Any) -> None:
    manifest = toy.run()
    assert toy.ran == ALL
    assert toy.total == 1 + 4 + 9
    assert [record.state for record in manifest.stages.values()] == ["done"] * 3
    toy.run()
    assert toy.ran == []


def test_manifest_tells_what_was_built_from_what(toy: Any) -> None:
    toy.run()
    body = json.loads((toy.engine / "manifest.json").read_text())
    record = body["stages"]["squares"]
    assert [file["path"] for file in record["outputs"]] == ["squares.txt"]
    assert record["basis"]["inputs"].keys() == {"numbers"}
    assert record["command"] == "nvlm-trt build toy.yaml --from squares --until squares"
    assert record["peak_memory_bytes"] > 1 << 20
    assert [file["path"] for file in body["checkpoint"]["files"]] == ["model.safetensors"]
    assert body["tools"].keys() == {"nvlm-trt", "python", "numpy", "psutil"}, "those of the last stage as well"


def test_a_changed_weight_byte_rebuilds_although_size_and_modification_time_are_the_same(toy: Any) -> None:
    toy.run()
    weights = toy.checkpoint / "model.safetensors"
    before = weights.stat()
    weights.write_bytes(b"\x01\x02\x04")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    toy.run()
    assert toy.ran == ALL
    assert toy.total == 1 + 4 + 16


def test_a_touched_checkpoint_of_equal_content_is_read_again_and_nothing_is_built(toy: Any) -> None:
    toy.run()
    os.utime(toy.checkpoint / "model.safetensors")
    toy.run()
    assert toy.ran == []


def test_the_checkpoint_is_not_read_again_while_it_is_the_same_file(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.run()

    def refuse(*_arguments: object) -> str:
        raise AssertionError("a file was read")

    monkeypatch.setattr("nvlm_trt.pipeline.digest._hash_file", refuse)
    toy.run()
    assert toy.ran == []


def test_an_output_that_was_digested_while_it_was_written_is_not_read_again(
    toy: Any,
) -> None:
    def digested(context: StageContext) -> None:
        if context.out.name == ".squares.partial":
            toy.after_stage = lambda: context.digested(context.out / "squares.txt", "5" * 64)

    toy.before_stage = digested
    manifest = toy.run()
    assert [file.sha256 for file in manifest.stages["squares"].outputs] == ["5" * 64]
    toy.run()
    assert toy.ran == []


def test_losing_the_cache_of_digests_costs_no_stage(toy: Any) -> None:
    toy.run()
    (toy.engine / CACHE_NAME).write_text("{ damaged")
    toy.run()
    assert toy.ran == []


def test_a_changed_part_of_the_recipe_rebuilds_from_the_stage_that_it_concerns(toy: Any) -> None:
    toy.run()
    toy.power = 3
    toy.run()
    assert toy.ran == ["squares", "total"]
    assert toy.total == 1 + 8 + 27


def test_a_rebuilt_stage_of_equal_output_leaves_later_stages_alone(toy: Any) -> None:
    toy.run()
    (toy.engine / "squares.txt").unlink()
    toy.run()
    assert toy.ran == ["squares"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "add"])
def test_a_damaged_output_is_noticed_and_built_again(toy: Any, damage: str) -> None:
    toy.run()
    numbers = toy.engine / "numbers"
    if damage == "flip":
        (numbers / "0.txt").write_text("7")
    elif damage == "truncate":
        (numbers / "0.txt").write_text("")
    elif damage == "delete":
        (numbers / "0.txt").unlink()
    else:
        (numbers / "3.txt").write_text("4")
    toy.run()
    assert toy.ran == ["numbers"]
    assert sorted(path.name for path in numbers.iterdir()) == ["0.txt", "1.txt", "2.txt"]
    assert (numbers / "0.txt").read_text() == "1"


def test_until_from_and_force_choose_the_stages(toy: Any) -> None:
    toy.run(until="numbers")
    assert toy.ran == ["numbers"]
    toy.run()
    assert toy.ran == ["squares", "total"]
    toy.run(redo_from="squares", until="squares")
    assert toy.ran == ["squares"]
    toy.run(force=True)
    assert toy.ran == ALL


def test_an_unknown_stage_is_refused_with_a_suggestion(toy: Any) -> None:
    with pytest.raises(UserError, match="did you mean squares"):
        toy.run(until="square")
    with pytest.raises(UserError, match="--from comes after --until"):
        toy.run(redo_from="total", until="numbers")


def test_an_interrupted_stage_is_run_again_and_its_leftovers_are_removed(toy: Any) -> None:
    def interrupt(context: StageContext) -> None:
        if context.out.name == ".squares.partial":
            (context.out / "squares.txt").write_text("half")
            raise KeyboardInterrupt

    toy.before_stage = interrupt
    with pytest.raises(KeyboardInterrupt):
        toy.run()
    assert (toy.engine / ".squares.partial" / "squares.txt").exists()
    toy.before_stage = lambda _context: None
    toy.run()
    assert toy.ran == ["squares", "total"]
    assert not list(toy.engine.glob(".*.partial"))
    assert toy.total == 14


def test_a_failing_stage_is_told_in_one_sentence_and_noted(toy: Any) -> None:
    def fail(context: StageContext) -> None:
        if context.out.name == ".total.partial":
            raise ValueError("no numbers today")

    toy.before_stage = fail
    with pytest.raises(BuildError, match="stage total failed: ValueError: no numbers today"):
        toy.run()
    record = json.loads((toy.engine / "manifest.json").read_text())["stages"]["total"]
    assert record["state"] == "failed"
    assert "no numbers today" in record["error"]
    assert not (toy.engine / ".total.partial").exists()


@pytest.mark.parametrize("moment", ["before_stage", "after_stage"])
def test_a_disk_that_becomes_full_is_told_though_nothing_can_be_noted_any_more(
    toy: Any, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill(*_: object) -> None:
        for module in ("manifest", "digest", "code_digest"):
            monkeypatch.setattr(f"nvlm_trt.pipeline.{module}.write_atomic", refuse)
        if moment == "before_stage":
            refuse()

    toy.run(until="numbers")
    setattr(toy, moment, fill)
    with pytest.raises(DoesNotFitError, match="the disk became full in stage squares; free space and build again"):
        toy.run()
    assert load_manifest(toy.engine).stages["squares"].state == "running"


def test_a_stage_that_leaves_an_output_out_is_a_fault(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_text", lambda *_arguments: 0)
    with pytest.raises(BuildError, match=r"squares left no squares\.txt"):
        toy.run()


def test_a_checkpoint_that_changes_while_a_stage_reads_it_is_refused(toy: Any) -> None:
    def change(_context: StageContext) -> None:
        (toy.checkpoint / "model.safetensors").write_bytes(b"\x09")

    toy.before_stage = change
    with pytest.raises(CheckpointError, match="changed while it was being read"):
        toy.run()


def test_a_full_disk_is_refused_before_the_first_byte(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=(64 << 20) + 100)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage)
    with pytest.raises(DoesNotFitError, match=r"67\.1 MB free.*give --output on another disk") as caught:
        toy.run()
    assert caught.value.exit_code == 2
    assert toy.ran == []
    assert not (toy.engine / "manifest.json").exists()


def test_a_stage_that_cannot_run_here_is_left_out_where_nobody_needs_it_and_refused_before_the_first_byte_else(
    toy: Any,
) -> None:
    toy.lacks = {"total": "it needs a bigger abacus"}
    toy.run(until="squares")
    assert toy.ran == ["numbers", "squares"]
    shutil.rmtree(toy.engine)
    toy.engine.mkdir()
    with pytest.raises(UserError, match="stage total cannot run here: it needs a bigger abacus"):
        toy.run()
    assert toy.ran == []
    assert list(toy.engine.iterdir()) == []


def test_a_long_stage_goes_on_from_what_an_interrupted_run_with_the_same_basis_has_done(toy: Any) -> None:
    seen: list[list[str]] = []

    def note(context: StageContext) -> None:
        if context.out.name == ".squares.partial":
            seen.append(sorted(path.name for path in context.work.iterdir()))
            (context.work / "half").write_text("done")
            if len(seen) < 3:
                raise KeyboardInterrupt

    toy.before_stage = note
    with pytest.raises(KeyboardInterrupt):
        toy.run()
    with pytest.raises(KeyboardInterrupt):
        toy.run()
    toy.power = 3
    toy.run()
    assert seen == [[], ["half"], []], "work of another basis is not taken up"
    assert not list(toy.engine.glob(".*.work"))


@pytest.mark.parametrize("asked", [{"force": True}, {"redo_from": "squares"}])
def test_a_stage_that_is_built_anew_does_not_go_on_from_what_an_interrupted_run_has_done(
    toy: Any, asked: dict[str, Any]
) -> None:
    seen: list[list[str]] = []

    def note(context: StageContext) -> None:
        if context.out.name == ".squares.partial":
            seen.append(sorted(path.name for path in context.work.iterdir()))
            (context.work / "half").write_text("done")
            if len(seen) < 2:
                raise KeyboardInterrupt

    toy.before_stage = note
    with pytest.raises(KeyboardInterrupt):
        toy.run()
    toy.run(**asked)
    assert seen == [[], []]


def test_work_that_an_interrupted_run_has_done_is_not_asked_for_again(
    toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(context: StageContext) -> None:
        if context.out.name == ".numbers.partial":
            (context.work / "half").write_bytes(bytes(70))
            raise KeyboardInterrupt

    toy.before_stage = half
    with pytest.raises(KeyboardInterrupt):
        toy.run()
    toy.before_stage = lambda _context: None
    usage, free = shutil.disk_usage("/"), (64 << 20) + 100 + 50  # what the stages leave
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage._replace(free=free - 71))
    with pytest.raises(DoesNotFitError):
        toy.run()
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage._replace(free=free - 70))
    toy.run()
    assert toy.ran == ALL


def test_what_is_not_of_the_plan_any_more_goes_with_its_record_and_its_work(toy: Any) -> None:
    toy.run()
    (toy.engine / ".total.0123456789abcdef.work").mkdir()
    toy.without_total = True
    manifest = toy.run(until="numbers")
    assert toy.ran == []
    assert list(manifest.stages) == ["numbers", "squares"], "a stage that was not chosen is of the plan"
    assert load_manifest(toy.engine) == manifest
    assert "psutil" not in manifest.tools
    assert sorted(path.name for path in toy.engine.iterdir() if "total" in path.name) == []
    assert (toy.engine / "squares.txt").exists()


@pytest.mark.parametrize("state", ["done", "failed"])
def test_a_stage_that_leaves_something_else_now_takes_the_old_away(toy: Any, state: str) -> None:
    toy.run()
    if state == "failed":  # the outputs of before are still there

        def fail(_context: StageContext) -> None:
            raise ValueError("no squares today")

        toy.before_stage = fail
        with pytest.raises(BuildError):
            toy.run(redo_from="squares")
        toy.before_stage = lambda _context: None
    toy.place = "powers.txt"
    toy.run()
    assert toy.ran == ["squares", "total"] if state == "failed" else ["squares"]
    assert toy.total == 14
    assert not (toy.engine / "squares.txt").exists()


def test_outputs_that_an_older_release_noted_file_by_file_go_as_well(toy: Any) -> None:
    toy.run()
    path = toy.engine / "manifest.json"
    body = json.loads(path.read_text())
    for record in body["stages"].values():
        del record["places"]
    path.write_text(json.dumps(body))
    toy.run()
    assert toy.ran == []
    toy.without_total = True
    toy.run()
    assert not (toy.engine / "total.txt").exists()


def test_a_refused_build_removes_nothing(toy: Any) -> None:
    toy.run()
    toy.without_total, toy.power = True, 3
    toy.stages = lambda stages=toy.stages: tuple(
        dataclasses.replace(stage, lacks="it needs a bigger abacus") for stage in stages()
    )
    with pytest.raises(UserError, match="bigger abacus"):
        toy.run()
    assert (toy.engine / "total.txt").exists()
    assert "total" in load_manifest(toy.engine).stages


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_build_killed_while_it_removes_is_finished_by_the_next(
    toy: Any, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.run()
    toy.without_total = True
    remove = durable.remove

    def kill(path: Path) -> None:
        if moment == "after":
            remove(path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(durable, "remove", kill)
        with pytest.raises(KeyboardInterrupt):
            toy.run()
    assert "total" in load_manifest(toy.engine).stages, "what may still lie there is known"
    toy.run()
    assert "total" not in load_manifest(toy.engine).stages
    assert not (toy.engine / "total.txt").exists()
    toy.without_total = False
    toy.run()
    assert toy.ran == ["total"]


def test_what_the_build_reads_is_left_where_an_earlier_build_made_it(toy: Any) -> None:
    toy.run()
    toy.checkpoint = toy.engine / "total.txt"
    shutil.move(toy.engine / "total.txt", toy.engine / "aside")
    toy.checkpoint.mkdir()
    (toy.checkpoint / "model.safetensors").write_bytes(b"\x01\x02\x03")
    toy.without_total = True
    toy.run()
    assert "total" not in load_manifest(toy.engine).stages
    assert (toy.checkpoint / "model.safetensors").exists()


def test_room_that_removing_makes_is_counted(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.run()
    (toy.engine / "total.txt").write_bytes(bytes(60))
    toy.without_total = True
    usage = shutil.disk_usage("/")._replace(free=(64 << 20) + 90)  # 100 and 50 are asked for, and 60 and 12 come free
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage)
    toy.run(force=True)
    assert toy.ran == ["numbers", "squares"]

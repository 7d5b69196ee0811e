"""Building real engines of a tiny checkpoint, and refusing what cannot be built."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import filelock
import pytest
import yaml
from safetensors.torch import load_file, save_file

from nvlm_trt.errors import CheckpointError, EngineError, RecipeError, UserError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.pipeline.build import BuildRequest, build, dry_run, plan_build
from nvlm_trt.pipeline.lock import locked
from nvlm_trt.pipeline.manifest import load_manifest, recorded_checkpoint
from nvlm_trt.pipeline.plan import Selection
from nvlm_trt.pipeline.progress import Silent
from nvlm_trt.pipeline.sources import find_recipe
from nvlm_trt.recipe import load_recipe

WriteRecipe = Callable[..., str]
CPU = {"target": "cpu", "vision_precision": "fp32", "decoder_precision": "int8_wo", "max_batch_size": 2}


@pytest.fixture
def write_recipe(tmp_path: Path) -> WriteRecipe:
    def write(**fields: object) -> str:
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump({**CPU, **fields}))
        return str(path)

    return write


def request(recipe: str, checkpoint: Path | None, engine: Path, until: str | None = None) -> BuildRequest:
    return BuildRequest(recipe, checkpoint, engine, Selection(until))


def test_a_dry_run_tells_the_plan_and_writes_nothing(
    write_recipe: WriteRecipe, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    engine = tmp_path / "engine"
    planned, decisions = dry_run(request(write_recipe(), tiny_checkpoint, engine))
    names = [decision.stage.name for decision in decisions]
    assert names == [
        "inspect",
        "vision-export",
        "vision-compile",
        "decoder-convert",
        "decoder-compile",
        "verify",
        "package",
    ]
    assert {decision.action for decision in decisions} == {"run"}
    assert planned.engine == engine
    assert not engine.exists()


def test_a_dry_run_of_a_built_engine_skips_without_reading_weights(
    write_recipe: WriteRecipe, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = request(write_recipe(), tiny_checkpoint, tmp_path / "engine", "vision-export")
    build(wanted, Silent())
    before = sorted((path, path.stat().st_mtime_ns) for path in wanted.output.rglob("*"))

    def refuse(*_arguments: object) -> str:
        raise AssertionError("a file was read")

    monkeypatch.setattr("nvlm_trt.pipeline.digest._hash_file", refuse)
    assert [decision.action for decision in dry_run(wanted)[1]] == ["skip", "skip"]
    (wanted.output / "vision" / "vision.onnx").touch()
    assert "its digest will decide" in dry_run(wanted)[1][1].reason
    assert [path for path, _ in before] == sorted(wanted.output.rglob("*"))


def test_inspect_leaves_what_the_engine_needs_besides_weights(
    write_recipe: WriteRecipe, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    engine = tmp_path / "engine"
    build(request(write_recipe(), tiny_checkpoint, engine, "inspect"), Silent())
    assert load_recipe(engine / "recipe.yaml").checkpoint == str(tiny_checkpoint)
    assert (engine / "config.json").read_bytes() == (tiny_checkpoint / "config.json").read_bytes()
    assert {path.name for path in (engine / "tokenizer").iterdir()} == {
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
    }


def test_a_tokenizer_with_an_id_that_would_be_a_row_of_the_prompt_table_is_refused(
    write_recipe: WriteRecipe, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    foreign = shutil.copytree(tiny_checkpoint, tmp_path / "foreign")
    settings = json.loads((foreign / "tokenizer_config.json").read_text())

    def built(index: int) -> None:
        added = settings["added_tokens_decoder"] | {str(index): {"content": "<|late|>", "special": True}}
        (foreign / "tokenizer_config.json").write_text(json.dumps(settings | {"added_tokens_decoder": added}))
        build(request(write_recipe(), foreign, tmp_path / "engine", "inspect"), Silent())

    built(575)
    with pytest.raises(CheckpointError, match=r"id 576; expected: below llm_config\.vocab_size, 576"):
        built(576)


def test_lengths_beyond_the_checkpoint_are_cut_and_said(
    write_recipe: WriteRecipe, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(max_input_len=40_000, max_output_len=1000)
    sources = plan_build(request(recipe, tiny_checkpoint, tmp_path / "engine")).sources
    assert sources.max_seq_len == 32768
    assert "the checkpoint has 32768 positions" in sources.remarks()[0]
    assert plan_build(request(write_recipe(), tiny_checkpoint, tmp_path / "engine")).sources.remarks() == []


def test_room_for_visual_tokens_counts_the_thumbnail(
    write_recipe: WriteRecipe, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(max_images=2, max_tiles=6)
    assert plan_build(request(recipe, tiny_checkpoint, tmp_path / "engine")).sources.max_table_rows == 2 * 7 * 16
    recipe = write_recipe(max_images=2, max_tiles=1)
    assert plan_build(request(recipe, tiny_checkpoint, tmp_path / "engine")).sources.max_table_rows == 2 * 1 * 16


def test_what_the_gpu_target_compiles_is_judged_before_it_is(
    write_recipe: WriteRecipe, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(target="gpu", vision_precision="fp8", decoder_precision="fp8")
    _, decisions = dry_run(request(recipe, tiny_checkpoint, tmp_path / "engine"))
    assert [decision.stage.name for decision in decisions] == [
        "inspect",
        "vision-calibrate",
        "vision-export",
        "decoder-calibrate",
        "decoder-convert",
        "verify",
        "vision-compile",
        "decoder-compile",
        "package",
    ]


def test_a_gpu_recipe_exports_and_converts_here_and_says_why_it_does_not_compile(
    write_recipe: WriteRecipe, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    engine = tmp_path / "engine"
    recipe = write_recipe(target="gpu", tp=2, vision_precision="bf16", decoder_precision="bf16")
    with pytest.raises(UserError, match="stage vision-compile cannot run here: it needs TensorRT"):
        build(request(recipe, tiny_checkpoint, engine), Silent())
    assert not engine.exists()
    build(request(recipe, tiny_checkpoint, engine, "decoder-convert"), Silent())
    assert (engine / "vision" / "vision.onnx").is_file()
    assert (engine / "decoder" / "checkpoint" / "rank1.safetensors").is_file()
    _, decisions = dry_run(request(recipe, tiny_checkpoint, engine))
    actions = {decision.stage.name: decision.action for decision in decisions}
    assert actions["decoder-convert"] == "skip"
    assert actions["decoder-compile"] == "run"


@pytest.mark.parametrize("path", sorted(Path("build/recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_project_loads_and_plans(path: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    if recipe.target == "cpu":  # the tiny checkpoint is too narrow for many ranks; test_stages.py plans the others
        _, decisions = dry_run(request(str(path), tiny_checkpoint, tmp_path / "engine"))
        assert len(decisions) >= 7


def test_a_recipe_may_be_given_by_name() -> None:
    assert find_recipe("nvlm-d-mini-cpu") == Path("build/recipes/nvlm-d-mini-cpu.yaml")
    assert find_recipe("elsewhere.yaml") == Path("elsewhere.yaml")


def test_a_recipe_needs_a_checkpoint_that_exists(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"names no checkpoint.*--checkpoint"):
        plan_build(request(write_recipe(), None, tmp_path / "engine"))
    with pytest.raises(RecipeError, match="no such synthetic checkpoint; seen: synth:huge; expected: synth:tiny"):
        plan_build(request(write_recipe(checkpoint="synth:huge"), None, tmp_path / "engine"))
    with pytest.raises(CheckpointError, match="no checkpoint directory"):
        build(request(write_recipe(), tmp_path / "nothing", tmp_path / "engine"), Silent())
    assert not (tmp_path / "engine").exists()


def test_a_checkpoint_that_fails_inside_leaves_no_engine_directory(
    write_recipe: WriteRecipe, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_checkpoint, damaged)
    info = next(i for n, i in Checkpoint.open(damaged).tensors.items() if n.endswith("attn.qkv.weight"))
    tensors = load_file(info.file)
    tensors[info.name][-1] = 1.0  # the last row belongs to a dummy head
    save_file(tensors, info.file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="dummy rows of v are not zero"):
        build(request(write_recipe(), damaged, tmp_path / "engine"), Silent())
    assert not (tmp_path / "engine").exists()


def test_a_folder_that_holds_something_else_is_never_built_into(
    write_recipe: WriteRecipe, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.json").write_text("mine")
    with pytest.raises(EngineError, match="is no engine directory"):
        build(request(write_recipe(), tiny_checkpoint, home), Silent())
    assert (home / "config.json").read_text() == "mine"


def test_a_build_that_waits_makes_the_directory_again_when_the_other_build_removes_it(
    write_recipe: WriteRecipe, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    engine = tmp_path / "engine"
    engine.mkdir()
    asked = dataclasses.replace(request(write_recipe(), tiny_checkpoint, engine, "inspect"), wait=True)
    with ThreadPoolExecutor() as threads:
        with locked(engine, wait=False):
            waiting = threads.submit(build, asked, Silent())
            assert not wait([waiting], timeout=0.5).done
            shutil.rmtree(engine)  # as a build does that failed before a stage was done
        _, manifest = waiting.result()
    assert manifest.stages["inspect"].state == "done"


@pytest.mark.parametrize(("place", "reason"), [("file/sub", "Not a directory"), ("/proc/foo", "No such file")])
def test_a_place_that_cannot_be_written_is_told(
    place: str, reason: str, write_recipe: WriteRecipe, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"the engine directory cannot be written \({reason}.*\); seen: .*{place}"):
        build(request(write_recipe(), tiny_checkpoint, tmp_path / place), Silent())


def test_a_directory_of_a_read_only_file_system_is_told(
    write_recipe: WriteRecipe, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with pytest.raises(UserError, match=r"cannot be written \(Read-only file system\)"):
        build(request(write_recipe(), tiny_checkpoint, tmp_path / "engine"), Silent())


def test_another_checkpoint_of_equal_content_rebuilds_no_weights(
    write_recipe: WriteRecipe, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    engine, copy = tmp_path / "engine", tmp_path / "copy"
    build(request(write_recipe(), tiny_checkpoint, engine, "vision-export"), Silent())
    shutil.copytree(tiny_checkpoint, copy)
    wanted = request(write_recipe(), copy, engine, "vision-export")
    _, manifest = build(wanted, Silent())
    assert manifest.checkpoint["path"] == str(copy)
    _, decisions = dry_run(dataclasses.replace(wanted))
    assert [decision.action for decision in decisions] == ["skip", "skip"]


def test_a_given_checkpoint_takes_the_place_of_the_synthetic_one(
    write_recipe: WriteRecipe, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    engine = tmp_path / "engine"
    recipe = write_recipe(checkpoint="synth:tiny")
    build(request(recipe, None, engine, "vision-export"), Silent())
    assert recorded_checkpoint(engine) == engine / "checkpoint"
    given = request(recipe, tiny_checkpoint, engine, "vision-export")
    _, decisions = dry_run(given)
    assert [(decision.stage.name, decision.action) for decision in decisions] == [
        ("synth", "remove"),
        ("inspect", "run"),
        ("vision-export", "run"),
    ]
    assert decisions[0].reason == "no stage of this build leaves checkpoint"
    assert (engine / "checkpoint" / "config.json").is_file(), "a dry run removes nothing"
    build(given, Silent())
    assert recorded_checkpoint(engine) == tiny_checkpoint
    assert not (engine / "checkpoint").exists()
    assert list(load_manifest(engine).stages) == ["inspect", "vision-export"]
    assert {decision.action for decision in dry_run(given)[1]} == {"skip"}


def test_a_synthetic_checkpoint_may_be_given_to_the_directory_that_it_lies_in(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    engine = tmp_path / "engine"
    recipe = write_recipe(checkpoint="synth:tiny")
    build(request(recipe, None, engine, "inspect"), Silent())
    build(request(recipe, engine / "checkpoint", engine, "inspect"), Silent())
    assert recorded_checkpoint(engine) == engine / "checkpoint"
    assert (engine / "checkpoint" / "config.json").is_file()


def test_another_target_takes_the_engines_of_the_first_away(
    write_recipe: WriteRecipe, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    engine = tmp_path / "engine"
    build(request(write_recipe(), tiny_checkpoint, engine, "vision-compile"), Silent())
    assert (engine / "vision" / "cpu").is_dir()
    gpu = write_recipe(target="gpu", vision_precision="bf16", decoder_precision="bf16")
    build(request(gpu, tiny_checkpoint, engine, "vision-export"), Silent())
    assert not (engine / "vision" / "cpu").exists()
    assert (engine / "vision" / "vision.onnx").is_file()


def test_a_relative_path_of_a_recipe_is_one_of_the_directory_in_which_the_build_was_started(
    write_recipe: WriteRecipe, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ck").symlink_to(tiny_checkpoint)
    line = {"id": "1", "images": [], "question": "What?", "answers": ["1"], "metric": "exact"}
    (tmp_path / "task.jsonl").write_text(json.dumps(line))
    (tmp_path / "samples.jsonl").write_text(json.dumps({"text": "Why?"}))
    named = {"gates": {"task": "task.jsonl"}, "calibration": {"samples": "samples.jsonl"}}
    recipe, engine = write_recipe(checkpoint="ck", **named), tmp_path / "engine"
    build(request(recipe, None, engine, "inspect"), Silent())
    assert recorded_checkpoint(engine) == tmp_path / "ck"
    built = load_recipe(engine / "recipe.yaml")
    assert (built.checkpoint, built.gates.task) == (str(tmp_path / "ck"), str(tmp_path / "task.jsonl"))
    assert built.calibration.samples == str(tmp_path / "samples.jsonl")

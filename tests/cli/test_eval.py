"""`nvlm-trt eval`: engines, torch and data sets by command line."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from nvlm_trt.client.retry import Backoff
from nvlm_trt.eval.tasks import read_tasks
from nvlm_trt.miniature.shipped import GATE_TASK
from nvlm_trt.pipeline.build import BuildRequest, build
from nvlm_trt.pipeline.plan import Selection
from nvlm_trt.pipeline.progress import Silent

GPU_RECIPE = """
target: gpu
decoder_precision: fp8
max_batch_size: 2
max_images: 2
max_input_len: 512
max_output_len: 16
calibration:
  count: 1
  max_tokens: 32
  device: cpu
"""


@pytest.fixture
def task(photograph: Path, tmp_path: Path) -> Path:
    """Three questions, one of them about a photograph; two categories."""
    rows = [
        {"id": "1", "images": [str(photograph)], "question": "What?", "category": "photo"},
        {"id": "2", "images": [], "question": "Why?", "category": "text"},
        {"id": "3", "images": [], "question": "How?", "category": "text"},
    ]
    lines = [json.dumps(row | {"answers": ["yes"], "metric": "exact", "max_tokens": 4}) for row in rows]
    path = tmp_path / "task.jsonl"
    path.write_text("\n".join(lines))
    return path


def records(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def test_an_engine_answers_a_task_and_the_records_say_what(nvlm_trt, small_engine, task, tmp_path):
    shown = nvlm_trt("eval", small_engine, "--task", task, "--output", tmp_path / "out")
    assert shown.code == 0
    lines = shown.out.splitlines()
    assert lines[0] == f"{task}: small (vision fp32, decoder fp32)"
    assert [line.split()[:3] for line in lines[3:6]] == [["photo", "1", "0"], ["text", "2", "0"], ["all", "3", "0"]]
    written = records(tmp_path / "out")
    assert {row["id"] for row in written} == {"1", "2", "3"}
    assert all(row["text"] and row["output_tokens"] == 4 for row in written)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["overall"]["samples"] == 3


def test_json_holds_exact_figures_and_right_answers_count(nvlm_trt, small_engine, task, tmp_path):
    first = nvlm_trt("eval", small_engine, "--task", task, "--output", tmp_path / "out", "--json").json
    assert first["overall"]["mean"] == 0
    rows = [json.loads(line) for line in task.read_text().splitlines()]
    said = {row["id"]: row["text"] for row in records(tmp_path / "out")}
    rows[2]["answers"] = [said["3"]]
    task.write_text("\n".join(map(json.dumps, rows)))
    again = nvlm_trt("eval", small_engine, "--task", task, "--output", tmp_path / "out", "--json")
    assert again.code == 0
    assert again.err == ""
    assert again.json["overall"]["mean"] == 1 / 3
    assert [(part["name"], part["mean"]) for part in again.json["categories"]] == [("photo", 0), ("text", 0.5)]
    assert again.json["options"] == {"max_tokens": None, "max_tiles": None, "tags": "kept", "seed": 0}
    assert again.json["published"] is None
    assert again.json["first_error"] is None
    assert len(records(tmp_path / "out")) == 3, "a changed right answer is scored anew, nothing is asked again"


def test_ablations_are_asked_anew_beside_the_answers_that_are_there(nvlm_trt, small_engine, task, tmp_path):
    for options in ((), ("--tags", "removed"), ("--max-tiles", "1"), ()):
        shown = nvlm_trt("eval", small_engine, "--task", task, "--limit", "1", "--output", tmp_path / "out", *options)
        assert shown.code == 0
    texts = [row["text"] for row in records(tmp_path / "out")]
    assert len(texts) == 3
    assert len(set(texts)) == 3


def test_answers_of_other_code_are_not_taken_over(nvlm_trt, small_engine, task, tmp_path, monkeypatch):
    words = ("eval", small_engine, "--task", task, "--limit", "1", "--output", tmp_path / "out")
    for digest in ("this", "this", "other"):
        monkeypatch.setattr("nvlm_trt.subjects._code", lambda _, digest=digest: digest)
        assert nvlm_trt(*words).code == 0
    assert len(records(tmp_path / "out")) == 2


def test_torch_takes_the_place_of_the_engine(nvlm_trt, small_engine, task, tmp_path):
    texts = {}
    for name, words in {"engine": (), "fp32": ("--emulate", "fp32"), "int4_wo": ("--emulate", "int4_wo")}.items():
        shown = nvlm_trt("eval", small_engine, "--task", task, "--output", tmp_path / name, "--json", *words)
        assert shown.code == 0
        texts[name] = {str(row["id"]): row["text"] for row in records(tmp_path / name)}
        if name == "int4_wo":
            assert shown.json["subject"] == "small (vision fp32, decoder int4_wo, emulated in torch)"
    assert texts["fp32"] == texts["engine"] != texts["int4_wo"]


def test_a_calibrated_precision_is_emulated_from_what_the_build_left(nvlm_trt, tiny_checkpoint, task, tmp_path):
    recipe = tmp_path / "fp8.yaml"
    recipe.write_text(GPU_RECIPE)
    engine = tmp_path / "fp8"
    build(BuildRequest(str(recipe), tiny_checkpoint, engine, Selection("decoder-calibrate")), Silent())
    shown = nvlm_trt("eval", engine, "--task", task, "--emulate", "fp8", "--json")
    assert shown.code == 0
    assert len(records(engine / "eval" / "task")) == 3
    refused = nvlm_trt("eval", engine, "--task", task)
    assert (refused.code, "answers through its server" in refused.err) == (2, True)


def test_without_a_calibration_the_precision_is_refused(nvlm_trt, small_engine, task):
    refused = nvlm_trt("eval", small_engine, "--task", task, "--emulate", "fp8", "--json")
    assert refused.code == 2
    assert "--until decoder-calibrate" in refused.json["error"]["fix"]
    unknown = nvlm_trt("eval", small_engine, "--task", task, "--emulate", "fp5", "--json")
    assert (unknown.code, unknown.json["error"]["seen"]) == (2, "fp5")


def test_samples_that_cannot_be_answered_end_with_exit_code_1(nvlm_trt, small_engine, task, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    rows = [json.loads(line) for line in task.read_text().splitlines()]
    task.write_text("\n".join(map(json.dumps, [rows[0] | {"images": ["bad.png"]}, rows[1]])))
    shown = nvlm_trt("eval", small_engine, "--task", task, "--output", tmp_path / "out")
    assert shown.code == 1
    (refused,) = [row for row in records(tmp_path / "out") if row["error"]]
    assert "not an image" in str(refused["error"])
    told = f"1 samples could not be answered and count as wrong, the first: {refused['error']}"
    assert shown.err.splitlines()[-1] == told
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["first_error"] == refused["error"]


def test_a_dry_run_shows_the_samples_and_writes_nothing(nvlm_trt, small_engine, task, tmp_path):
    words = ("eval", small_engine, "--task", task, "--output", tmp_path / "out", "--dry-run")
    facts = nvlm_trt(*words, "--json").json
    assert facts["samples"] == 3
    assert facts["images"] == 1
    assert facts["parts"] == [
        {"category": "photo", "metric": "exact", "samples": 1},
        {"category": "text", "metric": "exact", "samples": 2},
    ]
    shown = nvlm_trt(*words)
    assert "first question: What?" in shown.out
    assert not (tmp_path / "out").exists()


def test_the_task_that_ships_is_known_by_its_name(nvlm_trt, small_engine):
    facts = nvlm_trt("eval", small_engine, "--task", "shipped:nvlm-d-mini", "--dry-run", "--json").json
    assert facts["samples"] == len(read_tasks(GATE_TASK))
    assert facts["records"] == str(small_engine / "eval" / "nvlm-d-mini")
    refused = nvlm_trt("eval", small_engine, "--task", "shipped:other", "--dry-run")
    assert (refused.code, "nothing of this name ships" in refused.err) == (2, True)


def test_a_dry_run_refuses_what_the_run_would_refuse(nvlm_trt, small_engine, task, tmp_path):
    (tmp_path / "empty").mkdir()
    for words, message in (
        ((tmp_path / "empty",), "no engine directory"),
        ((small_engine, "--max-tiles", "7"), "max_tiles is out of range"),
        ((small_engine, "--max-tokens", "65"), "max_tokens is out of range; seen: 65; expected: 1 to 64"),
        ((small_engine, "--emulate", "fp8"), "need a calibration"),
        (("--url", "http://server"), "no address of a server"),
        (("--url", "server:8001", "--tags", "removed"), "writes the tags of tiles itself"),
    ):
        shown = nvlm_trt("eval", *words, "--task", task, "--dry-run")
        assert (shown.code, message in shown.err) == (2, True), words


def test_a_dry_run_names_what_is_no_image(nvlm_trt, small_engine, task, tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    row = json.loads(task.read_text().splitlines()[0])
    task.write_text(json.dumps(row | {"images": ["empty.png"]}))
    shown = nvlm_trt("eval", small_engine, "--task", task, "--dry-run")
    assert shown.code == 2
    assert f"sample 1: {tmp_path / 'empty.png'}: the image is empty" in shown.err


def test_what_is_asked_is_one_and_an_option_without_use_is_refused(nvlm_trt, small_engine, task, tiny_checkpoint):
    for words, seen in (
        ((), "neither an engine directory nor --url"),
        ((small_engine, "--url", "server:8001"), f"{small_engine} and --url server:8001"),
        ((small_engine, "--checkpoint", tiny_checkpoint), f"--checkpoint {tiny_checkpoint}"),
        (("--url", "server:8001", "--checkpoint", tiny_checkpoint), f"--checkpoint {tiny_checkpoint}"),
        (("--url", "server:8001", "--emulate", "fp32"), "--url server:8001"),
    ):
        error = nvlm_trt("eval", *words, "--task", task, "--dry-run", "--json").json["error"]
        assert error["seen"] == seen
        assert error["expected"]
        assert error["fix"]


def test_a_published_data_set_is_read_from_a_folder_and_compared(nvlm_trt, small_engine, photograph, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.png").write_bytes(photograph.read_bytes())
    (data / "val_v1.0.json").write_text(
        json.dumps({"data": [{"questionId": 1, "question": "?", "image": "documents/a.png", "answers": ["x"]}]})
    )
    words = ("eval", small_engine, "--task", "docvqa", "--output", tmp_path / "out", "--max-tokens", "4")
    shown = nvlm_trt(*words, "--data", data)
    assert shown.code == 0
    assert "92.6 (test)" in shown.out
    assert nvlm_trt(*words, "--data", data, "--json").json["published"]["megatron"] == 92.6
    part = nvlm_trt(*words, "--data", data, "--limit", "1")
    assert "92.6" not in part.out
    assert "no published figure beside these: it is of all samples" in part.err
    row = {"image": "a.png", "question_id": 1, "question": "What is A?\nA. x\nB. y", "answer": "B"}
    (data / "ai2d_test_vlmevalkit.jsonl").write_text(json.dumps(row))
    shown = nvlm_trt("eval", small_engine, "--task", "ai2d", *words[4:], "--data", data)
    assert "85.2 (test, with mask)" in shown.out, "there is no figure with the released code"
    refused = nvlm_trt(*words)
    assert (refused.code, "--data" in refused.err) == (2, True)


def test_a_server_that_is_not_there_is_a_fault_and_a_bad_command_line_a_mistake(
    nvlm_trt, small_engine, task, tmp_path, monkeypatch
):
    monkeypatch.setattr(Backoff, "wait", lambda *_: 0.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"127.0.0.1:{taken.getsockname()[1]}"
    shown = nvlm_trt("eval", "--url", url, "--task", task, "--output", tmp_path / "out")
    assert shown.code == 1
    assert "cannot be reached" in shown.err
    for words in (
        ("--task", task),
        (small_engine, "--url", url, "--task", task),
        ("--url", url, "--emulate", "fp32", "--task", task),
        ("--url", url, "--tags", "removed", "--task", task, "--output", tmp_path / "tags"),
        (small_engine, "--task", tmp_path / "none.jsonl"),
        (small_engine, "--task", task, "--max-tiles", "7"),
        (tmp_path, "--task", task),
        (small_engine, "--task", "docqa", "--data", tmp_path),
    ):
        assert nvlm_trt("eval", *words).code == 2, words

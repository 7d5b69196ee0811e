"""Texts of a person that are no JSON, no YAML, or more than Python parses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nvlm_trt.bench.report import read_report
from nvlm_trt.cli.conversation import read_history
from nvlm_trt.client.batch_ids import BatchIds
from nvlm_trt.client.batch_input import BatchInput
from nvlm_trt.datasheets.datasheet import load_gpu
from nvlm_trt.errors import UserError
from nvlm_trt.eval.adapters.folder import read_json, read_jsonl
from nvlm_trt.eval.tasks import read_tasks
from nvlm_trt.model.config import load_config
from nvlm_trt.parsed import json_value, yaml_value
from nvlm_trt.pipeline.manifest import load_manifest
from nvlm_trt.recipe import load_recipe

DEEP = "[" * 100_000
TASK = {"id": "1", "images": [], "question": "Why?", "answers": ["so"], "metric": "exact"}


@pytest.mark.parametrize("parse", [json_value, yaml_value])
def test_a_value_is_read_and_every_fault_of_the_text_is_a_value_error(parse: Callable[[str], object]) -> None:
    assert parse('{"a": [1, null]}') == {"a": [1, None]}
    for text in ('{"a": ', DEEP, '{"a":' * 100_000):
        with pytest.raises(ValueError, match=r"."):
            parse(text)


def test_lines_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "task.jsonl").write_text(json.dumps(TASK), encoding="utf-8-sig")
    assert len(read_tasks(tmp_path / "task.jsonl")) == 1
    (tmp_path / "batch.jsonl").write_text(json.dumps({"prompt": "Why?"}), encoding="utf-8-sig")
    with BatchInput(tmp_path / "batch.jsonl") as requests, BatchIds() as ids:
        requests.check(ids)
        assert len([*requests.requests(ids)]) == 1


def test_a_date_that_is_none_is_a_fault_of_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: 2026-13-45")
    with pytest.raises(UserError, match="the recipe cannot be read"):
        load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("history.json", read_history),
        ("report.json", read_report),
        ("config.json", lambda path: load_config(path.parent)),
        ("manifest.json", lambda path: load_manifest(path.parent)),
        ("recipe.yaml", load_recipe),
        ("gpu.yaml", lambda path: load_gpu(str(path))),
        ("task.jsonl", read_tasks),
        ("annotations.json", read_json),
        ("annotations.jsonl", lambda path: list(read_jsonl(path))),
    ],
)
def test_a_file_that_is_nested_too_deeply_is_the_users_mistake(
    name: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(DEEP)
    with pytest.raises(UserError, match="nested too deeply"):
        read(tmp_path / name)

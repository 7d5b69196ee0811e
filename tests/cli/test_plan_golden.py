"""The plans of the shipped gpu recipes, and the sheet of docs/planning.md, word for word.

After a change that is meant, renew the files, and read the difference before it is committed:

    NVLM_TRT_RENEW_GOLDEN=1 pytest tests/cli/test_plan_golden.py

What building takes is left out: it follows the stages' own estimates, which tests/plan/test_costs.py compares.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "plan"
SHEET = re.compile(r"(?P<before>\n {4}\$ nvlm-trt (?P<command>plan .*)\n)(?P<sheet>(?: {4}.*\n|\n)+?)(?=\n\S)")
PLANS = [
    ("nvlm-d-72b-bf16-tp8", "h100-sxm"),
    ("nvlm-d-72b-fp8-tp2-h200", "h200-sxm"),
    ("nvlm-d-72b-fp8-tp4", "h100-sxm"),
    ("nvlm-d-72b-int4awq-tp2", "h100-sxm"),
    ("nvlm-d-72b-int8sq-tp4", "a100-80g-sxm"),
    ("nvlm-d-72b-int8wo-tp4", "a100-80g-sxm"),
]


def planned(nvlm_trt: Run, *words: str) -> str:
    """What `nvlm-trt plan` prints, without the costs of the build."""
    shown = nvlm_trt("plan", *words)
    assert shown.code == 0
    sheet, _ = shown.out.split("\nbuild\n")
    return str(sheet)


def renewing() -> bool:
    return os.environ.get("NVLM_TRT_RENEW_GOLDEN") == "1"


def test_every_gpu_recipe_has_a_golden_plan() -> None:
    recipes = {path.stem for path in (ROOT / "build" / "recipes").glob("*.yaml") if "target: gpu" in path.read_text()}
    assert {recipe for recipe, _ in PLANS} == recipes
    if not renewing():
        assert {path.name for path in GOLDEN.iterdir()} == {f"{recipe}.{gpu}.txt" for recipe, gpu in PLANS}


@pytest.mark.parametrize(("recipe", "gpu"), PLANS)
def test_the_plan_of_a_recipe(recipe: str, gpu: str, nvlm_trt: Run) -> None:
    sheet = planned(nvlm_trt, str(ROOT / "build" / "recipes" / f"{recipe}.yaml"), "--gpu", gpu)
    golden = GOLDEN / f"{recipe}.{gpu}.txt"
    if renewing():
        golden.write_text(sheet, encoding="utf-8")
        pytest.skip(f"{golden.name} is renewed")
    assert sheet == golden.read_text(encoding="utf-8")


def test_the_sheet_in_the_docs_is_what_its_command_prints(nvlm_trt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = ROOT / "docs" / "planning.md"
    text = page.read_text(encoding="utf-8")
    found = SHEET.search(text)
    assert found is not None
    command = shlex.split(found["command"])
    for words in ("--tiles 7", "--output 200", "--ttft-ms 500", "--concurrency 50"):
        assert words in found["command"]
    lines = planned(nvlm_trt, *command[1:]).splitlines()
    sheet = "".join(f"    {line}".rstrip() + "\n" for line in lines)
    if renewing():
        page.write_text(text[: found.start("sheet")] + sheet + text[found.end("sheet") :], encoding="utf-8")
        pytest.skip("docs/planning.md is renewed")
    assert sheet == found["sheet"]


def test_the_answer_in_the_docs_that_something_does_not_fit_is_what_its_command_prints(
    nvlm_trt: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")
    found = re.search(r"\n {4}\$ nvlm-trt (plan .*l40s)\n((?: {4}.*\n)+?) {4}\.\.\.\n", text)
    assert found is not None
    shown = [line.removeprefix("    ") for line in found[2].splitlines()]
    assert shown == planned(nvlm_trt, *shlex.split(found[1])[1:]).splitlines()[: len(shown)]

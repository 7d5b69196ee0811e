"""docs/operating.md: a section for each alert, and names that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from nvlm_trt.gateway.settings import Limits
from nvlm_trt.recipe import BuildRecipe

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operating.md").read_text()
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "build" / "monitoring" / "rules.yaml").read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
]


def test_every_alert_has_its_section_and_every_section_its_alert() -> None:
    (alerts,) = re.findall(r"^## Alerts$(.*?)^## ", PAGE, re.DOTALL | re.MULTILINE)
    sections = re.findall(r"^### (\w+)$", alerts, re.MULTILINE)
    assert len(sections) == len(set(sections))
    assert set(sections) == {rule["alert"] for rule in RULES}


def test_an_alert_links_its_section() -> None:
    assert RULES
    for rule in RULES:
        assert rule["annotations"]["runbook_url"].endswith(f"docs/operating.md#{rule['alert'].lower()}")


def test_alerts_that_the_page_names_exist() -> None:
    assert set(re.findall(r"\bNvlm[A-Z]\w+", PAGE)) <= {rule["alert"] for rule in RULES}


def test_metrics_that_the_page_names_are_documented() -> None:
    listed = (ROOT / "docs" / "observability.md").read_text()
    named = set(re.findall(r"\bnvlm_[a-z_]+", PAGE)) - {"nvlm_trt"}
    assert len(named) > 5
    assert {name for name in named if f"`{name}`" not in listed} == set()


def test_files_that_the_page_links_exist() -> None:
    for link in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / "docs" / link).exists(), link
    for path in re.findall(r"(?:build|tests|scripts)/[\w./-]*\w", PAGE):
        assert (ROOT / path).exists(), path


def test_limits_and_fields_of_the_recipe_exist() -> None:
    known = {field.name for field in fields(Limits)}
    (section,) = re.findall(r"^## Limits$(.*?)^## ", PAGE, re.DOTALL | re.MULTILINE)
    named = {word for word in re.findall(r"`(\w+)`", section) if word not in ("client_max_body_size",)}
    assert len(named) >= 6
    assert named <= known
    for group, name in re.findall(r"`(cpu_engine|decoder_engine)\.(\w+)`", PAGE):
        assert hasattr(BuildRecipe.model_fields[group].default, name), name


def test_options_of_serve_exist() -> None:
    command = [sys.executable, "-m", "nvlm_trt.cli.main", "serve", "--help"]
    known = set(re.findall(r"--[a-z-]+", subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    used = {word for line in re.findall(r"nvlm-trt serve .*", PAGE) for word in re.findall(r" (--[a-z-]+)", line)}
    used |= set(re.findall(r"`(--[a-z-]+)`", PAGE))
    assert "--grace" in used
    assert used <= known

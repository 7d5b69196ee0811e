"""docs/deployment.md names files, recipes, fields, options and messages that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from nvlm_trt.recipe import BuildRecipe

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deployment.md").read_text()


def test_paths_and_recipes_exist():
    for path in re.findall(r"(?:build|tests|docs|nvlm_trt)/[\w./-]*\w", PAGE):
        assert (ROOT / path).exists(), path
    for recipe in re.findall(r"nvlm-d-72b-[a-z0-9]+-tp\d", PAGE):
        assert (ROOT / "build" / "recipes" / f"{recipe}.yaml").is_file()


def test_fields_of_the_recipe_have_the_defaults_that_are_named():
    named = re.findall(r"`(vision_engine|decoder_engine)\.(\w+)` \(([^)]+)\)", PAGE)
    assert len(named) >= 5
    for group, name, said in named:
        default = BuildRecipe.model_fields[group].default
        value = getattr(default, name)
        assert value is None or str(value).lower() == said


def test_options_of_serve_exist():
    command = [sys.executable, "-m", "nvlm_trt.cli.main", "serve", "--help"]
    known = set(re.findall(r"--[a-z-]+", subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    used = {word for line in re.findall(r"nvlm-trt serve .*", PAGE) for word in re.findall(r"--[a-z-]+", line)}
    used |= set(re.findall(r"\| serve \| `(--[a-z-]+)`", PAGE))
    assert used
    assert used <= known


def test_messages_are_those_of_the_code():
    sources = "".join(path.read_text() for path in (ROOT / "nvlm_trt" / "host").glob("*.py"))
    for message in re.findall(r"^\| `([^`]+)` \|", PAGE.partition("When it does not start")[2], re.MULTILINE):
        if "(" not in message:
            text = message.replace("ensemble", "{name}")
            assert text in sources, message

"""scripts/venv.sh makes .venv once, and again where its making was interrupted."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = """#!/bin/bash
echo "${0##*/} $*" >>calls
case "$*" in
"-m venv "*) mkdir -p .venv/bin; cp "$0" .venv/bin/python; echo >.venv/pip ;;
"-m pip --version") [ -f .venv/pip ] ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the script, and a stand-in for the interpreter that writes down how it was called."""
    for name in ("scripts/venv.sh", "pyproject.toml", "hatch_build.py", "nvlm_trt/model/_resize.c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "python3").write_text(PYTHON)
    (tmp_path / "python3").chmod(0o755)
    return tmp_path


def calls(checkout: Path) -> list[str]:
    """How the interpreters were called by a script that needs .venv; a look at what is there does not count."""
    (checkout / "calls").write_text("")
    words = ["bash", "-euc", ". scripts/venv.sh cpu"]
    environment = os.environ | {"PYTHON": str(checkout / "python3")}
    subprocess.run(words, cwd=checkout, env=environment, check=True, capture_output=True)
    called = (checkout / "calls").read_text().splitlines()
    return [call for call in called if " -c " not in call and not call.endswith("pip --version")]


INSTALL = "python -m pip install --quiet --disable-pip-version-check --editable .[cpu]"


def test_it_is_made_once(checkout: Path) -> None:
    assert calls(checkout) == ["python3 -m venv --clear .venv", INSTALL]
    assert calls(checkout) == []


def test_one_that_has_no_pip_is_made_anew_and_a_whole_one_only_installed_into(checkout: Path) -> None:
    calls(checkout)
    (stamp,) = (checkout / ".venv").glob("installed-*")
    stamp.unlink()
    assert calls(checkout) == [INSTALL]
    stamp.unlink()
    (checkout / ".venv" / "pip").unlink()
    assert calls(checkout) == ["python3 -m venv --clear .venv", INSTALL]

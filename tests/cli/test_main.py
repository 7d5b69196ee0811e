"""Exit codes, errors, and how quickly help comes."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nvlm_trt.cli import main as entry
from nvlm_trt.cli.main import VERBS

Run = Callable[..., Any]
ENGINES = ("torch", "openvino", "onnx", "tritonclient")
HEAVY = (*ENGINES, "numpy", "PIL", "rich")
PROBE = """
import sys
from nvlm_trt.cli.main import main
code = main(sys.argv[1:])
print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)
sys.exit(code)
"""


def test_help_lists_every_verb_with_its_purpose(nvlm_trt: Run) -> None:
    shown = nvlm_trt("--help")
    assert shown.code == 0
    for verb in VERBS:
        assert f"\n  {verb} " in shown.out


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)])
def test_help_imports_nothing_that_takes_long(words: list[str]) -> None:
    shown = subprocess.run(
        [sys.executable, "-c", PROBE.format(heavy=HEAVY), *words], capture_output=True, text=True, check=True
    )
    assert shown.stderr == "[]\n"
    assert ("nvlm-trt " if words == ["--version"] else "Usage: nvlm-trt") in shown.stdout


def test_a_checkpoint_is_inspected_without_loading_torch(tiny_checkpoint: Path) -> None:
    command = [sys.executable, "-c", PROBE.format(heavy=ENGINES), "inspect", str(tiny_checkpoint)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stderr == "[]\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_a_function_of_its_module_that_says_what_it_does(verb: str, nvlm_trt: Run) -> None:
    function = getattr(importlib.import_module(f"nvlm_trt.cli.{verb}"), verb)
    assert function.__doc__
    shown = nvlm_trt(verb, "--help")
    assert shown.code == 0
    assert function.__doc__.splitlines()[0] in " ".join(shown.out.split())


def test_version(nvlm_trt: Run) -> None:
    assert nvlm_trt("--version").out.startswith("nvlm-trt ")


@pytest.mark.parametrize(
    "words", [["paint"], ["inspect"], ["inspect", ".", "--colour"], ["synth", "x", "--layers", "many"]]
)
def test_a_command_line_that_cannot_be_read_is_the_users_mistake(words: list[str], nvlm_trt: Run) -> None:
    shown = nvlm_trt(*words)
    assert shown.code == 2
    assert "Error: " in shown.err
    assert shown.out == ""


@pytest.mark.parametrize(
    ("words", "option", "value"),
    [
        (["eval", ".", "--task", "x"], "--concurrency", "0"),
        (["serve", "."], "--http-port", "70000"),
        (["tiles", "x.png"], "--tile-size", "abc"),
        (["serve", "."], "--grace", "nan"),
        (["eval", ".", "--task", "x"], "--tags", "lost"),
    ],
)
def test_an_option_that_cannot_be_taken_is_told_with_its_value(
    words: list[str], option: str, value: str, nvlm_trt: Run
) -> None:
    shown = nvlm_trt(*words, option, value, "--json")
    assert shown.code == 2
    message = shown.json["error"]["message"]
    assert message.count(repr(value)) == 1
    assert f"{option}'" in message
    assert message in shown.err


@pytest.mark.parametrize(
    ("words", "option", "value"),
    [
        (["plan", "x.yaml"], "--reserve-gb", "inf"),
        (["plan", "x.yaml"], "--reserve-gb", "1e300"),
        (["plan", "x.yaml"], "--ttft-ms", "inf"),
        (["serve", ".", "--dry-run"], "--grace", "inf"),
        (["serve", ".", "--dry-run"], "--grace", "nan"),
        (["chat", "--prompt", "Why?"], "--temperature", "inf"),
        (["top"], "--interval", "inf"),
    ],
)
def test_a_number_without_end_is_refused_by_the_options_name(
    words: list[str], option: str, value: str, nvlm_trt: Run
) -> None:
    shown = nvlm_trt(*words, option, value)
    assert (shown.code, shown.out) == (2, "")
    assert option in shown.err


def test_with_json_a_mistake_is_also_told_as_json(nvlm_trt: Run, tmp_path: Path) -> None:
    shown = nvlm_trt("inspect", tmp_path / "nothing", "--json")
    assert shown.code == 2
    error = shown.json["error"]
    assert error["type"] == "CheckpointError"
    assert error["seen"] == str(tmp_path / "nothing")
    assert shown.err == f"error: {error['message']}\n"
    assert nvlm_trt("inspect", "--json").json["error"]["type"] == "UsageError"


def test_a_fault_of_ours_shows_no_trace_until_it_is_asked_for(nvlm_trt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_words: object) -> None:
        raise ZeroDivisionError("seven by nought")

    monkeypatch.setattr(entry, "app_for", fail)
    shown = nvlm_trt("doctor")
    assert shown.code == 1
    assert shown.err == "error: ZeroDivisionError: seven by nought (a fault of nvlm-trt; --debug shows the trace)\n"
    assert "Traceback" in nvlm_trt("doctor", "--debug").err


def test_debug_may_stand_anywhere_and_shows_the_trace_of_a_users_mistake(nvlm_trt: Run, tmp_path: Path) -> None:
    for words in (["--debug", "inspect", tmp_path / "x"], ["inspect", tmp_path / "x", "--debug"]):
        shown = nvlm_trt(*words)
        assert shown.code == 2
        assert "Traceback" in shown.err


def test_an_interruption_has_its_own_code(nvlm_trt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_words: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, "app_for", interrupt)
    shown = nvlm_trt("doctor")
    assert (shown.code, shown.err) == (130, "interrupted\n")


def test_a_reader_that_goes_away_is_no_fault(tiny_checkpoint: Path) -> None:
    command = [sys.executable, "-m", "nvlm_trt.cli.main", "inspect", str(tiny_checkpoint)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as shown:
        assert shown.stdout is not None
        assert shown.stderr is not None
        shown.stdout.close()
        assert "error" not in shown.stderr.read()


def test_data_goes_to_stdout_and_nothing_else_does(nvlm_trt: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    shown = nvlm_trt("synth", tmp_path / "made", "--json")
    assert json.loads(shown.out)["tensors"] == 85
    assert shown.err == ""

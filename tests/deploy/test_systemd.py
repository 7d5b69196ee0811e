"""build/systemd/nvlm.service: a command that `nvlm-trt serve` takes, and time enough for it to drain."""

from __future__ import annotations

import configparser
import shlex
from pathlib import Path
from typing import Any

import typer

from nvlm_trt.cli.main import app_for

UNIT = Path(__file__).parents[2] / "build" / "systemd" / "nvlm.service"


def unit() -> configparser.ConfigParser:
    """The file; a key that it names twice is an error."""
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment, method-assign] # keys as they are written
    parser.read_string(UNIT.read_text())
    return parser


def options_of_serve() -> dict[str, Any]:
    """What the command line makes of the unit's command."""
    program, *words = shlex.split(unit()["Service"]["ExecStart"])
    assert Path(program).is_absolute()
    assert (Path(program).name, words[0]) == ("nvlm-trt", "serve")
    command: Any = typer.main.get_command(app_for("serve"))
    params: dict[str, Any] = command.commands["serve"].make_context("serve", words[1:]).params
    return params


def test_the_command_is_one_that_serve_takes() -> None:
    options = options_of_serve()
    assert options["log_format"] == "json"
    assert options["api_keys"] is not None
    assert options["gateway"]


def test_systemd_waits_for_longer_than_requests_under_way_have() -> None:
    service = unit()["Service"]
    assert int(service["TimeoutStopSec"]) >= options_of_serve()["grace"] + 15
    assert service["KillMode"] == "mixed", "model processes go on until `serve` has drained"


def test_it_is_started_again_when_it_fails_and_not_when_it_was_started_wrongly() -> None:
    service = unit()["Service"]
    assert (service["Restart"], service["RestartPreventExitStatus"]) == ("on-failure", "2")


def test_the_engines_are_mounted_before_the_start_and_lie_where_it_may_look() -> None:
    options, sections = options_of_serve(), unit()
    assert options["engine_dir"].is_relative_to(sections["Unit"]["RequiresMountsFor"])
    assert sections["Service"]["ProtectHome"] == "yes"
    for path in (options["engine_dir"], options["api_keys"]):
        assert path.is_absolute()
        assert not any(path.is_relative_to(place) for place in ("/home", "/root", "/run/user"))

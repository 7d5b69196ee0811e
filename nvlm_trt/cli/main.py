"""The entry point `nvlm-trt`: finds the verb, runs it, and turns errors into exit codes.

Exit codes: 0 done, 1 a fault of ours (a failed gate included), 2 the caller's mistake, 130 interrupted.
stdout carries data, stderr carries progress and errors. With ``--json`` an error is also printed to stdout as
``{"error": {"type", "message", "seen", "expected", "fix"}}``.

A verb lives in ``nvlm_trt/cli/<verb>.py`` as a function of the verb's own name with typer annotations; its docstring
is the help. The module is imported when the verb is asked for and imports nothing heavy at its top (``--help`` takes
under 0.3 s).
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Final, Protocol, TextIO, cast

import typer

from nvlm_trt import __version__
from nvlm_trt.errors import NvlmTrtError, UserError

VERBS: Final[dict[str, str]] = {
    "inspect": "Parts, parameters, bytes and dtypes of a checkpoint; what is missing or extra.",
    "tiles": "The tile grid of an image, its tags and tokens.",
    "prompt": "The expanded prompt text and its token ids.",
    "synth": "Write a random checkpoint in the real layout.",
    "plan": "Whether a recipe fits on GPUs, how fast it can be at best, what building it takes.",
    "build": "Build an engine directory from a recipe; resumes where an earlier build was stopped.",
    "verify": "Run every gate on an engine directory.",
    "generate": "Answer a prompt with an engine directory, without a server.",
    "serve": "Start the Triton server on an engine directory.",
    "top": "Watch a running server in the terminal.",
    "chat": "Ask a running server, streaming.",
    "batch": "Ask a running server every request of a file; goes on where a run ended.",
    "bench": "Measure engines of several precisions side by side: accuracy, size, memory, latency, throughput.",
    "eval": "How many questions of a task an engine or a server answers right.",
    "doctor": "What this machine can build and serve, and why not.",
}

DEBUG: Final = "--debug"
JSON: Final = "--json"

USAGE_ERRORS: Final = cast(type[Exception], typer.BadParameter.__mro__[1])
"""What typer raises for a command line that it cannot read. Newer releases carry click inside, so `click` is not it."""


class _UsageError(Protocol):
    message: str
    exit_code: int

    def format_message(self) -> str: ...

    def show(self, file: TextIO | None = None) -> None: ...


def _show_version(shown: bool) -> None:
    if shown:
        typer.echo(f"nvlm-trt {__version__}")
        raise typer.Exit


def _root(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version."),
    debug: bool = typer.Option(False, DEBUG, help="Show the trace of an error; may stand anywhere on the line."),
) -> None:
    """From an NVLM-D checkpoint to a running Triton Inference Server."""


def _not_asked_for() -> None:
    """Stand for a verb whose module is not imported because another verb was asked for."""


def _of_finite_numbers(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb, which is not begun with "inf" or "nan": an option's lower bound alone lets infinity through."""

    @wraps(verb)
    def checked(**options: object) -> None:
        for name, value in options.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"--{name.replace('_', '-')} is out of range", seen=value, expected="a finite number")
        verb(**options)

    return checked


def app_for(verb: str | None) -> typer.Typer:
    """The whole command line, in which only `verb` is imported; the others are there for `--help`."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(_root)
    for name, summary in VERBS.items():
        function: Callable[..., None] = _not_asked_for
        if name == verb:
            function = _of_finite_numbers(getattr(importlib.import_module(f"nvlm_trt.cli.{name}"), name))
        app.command(name, short_help=summary, help=function.__doc__)(function)
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = [word for word in given if word != DEBUG]
    trace, as_json = DEBUG in given, JSON in arguments
    try:
        app = app_for(next((word for word in arguments if word in VERBS), None))
        outcome = app(args=arguments, prog_name="nvlm-trt", standalone_mode=False)
        return outcome if isinstance(outcome, int) else 0
    except USAGE_ERRORS as raised:
        error = cast(_UsageError, raised)
        error.message += _seen_by(raised.__cause__, error.message)
        error.show(sys.stderr)
        _print_json_error(as_json, "UsageError", error.format_message())
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        typer.echo("interrupted", err=True)
        return 130
    except NvlmTrtError as error:
        _print_error(error, str(error), trace=trace, as_json=as_json)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes stdout once more
        return 1
    except Exception as error:
        hint = "" if trace else f" (a fault of nvlm-trt; {DEBUG} shows the trace)"
        _print_error(error, f"{type(error).__name__}: {error}{hint}", trace=trace, as_json=as_json)
        return 1


def _seen_by(check: BaseException | None, message: str) -> str:
    """The value that pydantic refused, for a message that does not show it.

    Releases of typer that check options by pydantic leave its error as the cause of theirs, and tell only the rule;
    earlier ones show the value themselves.
    """
    from pydantic import ValidationError

    if not isinstance(check, ValidationError):
        return ""
    seen = repr(check.errors()[0]["input"])
    return "" if seen in message else f", seen: {seen}"


def _print_error(error: Exception, message: str, *, trace: bool, as_json: bool) -> None:
    if trace:
        traceback.print_exception(error)
    typer.echo(f"error: {message}", err=True)
    members = {key: getattr(error, key, None) for key in ("what", "seen", "expected", "fix")}
    details = {key: str(value) for key, value in members.items() if value is not None}
    _print_json_error(as_json, type(error).__name__, message, **details)


def _print_json_error(as_json: bool, kind: str, message: str, **details: Any) -> None:
    if as_json:
        typer.echo(json.dumps({"error": {"type": kind, "message": message, **details}}, ensure_ascii=False))


if __name__ == "__main__":
    sys.exit(main())

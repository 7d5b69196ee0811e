"""Run builds that kill themselves with SIGKILL, one after another on one directory; started by test_killed_build.py.

Each build runs in a fork, so that the libraries are imported once. A build is told a stage and a moment of it:

* ``early``: while the stage works, 10 ms after it began;
* ``written``: when its outputs are complete in the partial folder;
* ``moved``: when the first output is in its place and the others are not;
* ``unnoted``: when all are in their places and the manifest does not know yet.

Prints one line a build: stage, moment, and how the process ended (-9 for the kill).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from nvlm_trt import durable
from nvlm_trt.pipeline import runner
from nvlm_trt.pipeline.build import BuildRequest, build
from nvlm_trt.pipeline.plan import Selection
from nvlm_trt.pipeline.progress import Silent
from nvlm_trt.pipeline.stage import Stage, StageContext

for module in (
    "nvlm_trt.verify.engine",
    "nvlm_trt.serving.package",
    "nvlm_trt.vision.export",
    "nvlm_trt.model.synthetic",
):
    __import__(module)


def kill_myself() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("a killed process goes on")


def kill_at(stage: str, moment: str) -> None:
    """Arrange for this process to be killed at a moment of a stage."""
    promote: Callable[..., object] = runner.Runner._promote  # type: ignore[assignment]
    move = durable.move_into_place

    def run_then_kill(context: StageContext, run: Callable[[StageContext], None]) -> None:
        threading.Timer(0.01, kill_myself).start()
        run(context)
        threading.Event().wait()

    def promote_then_kill(self: runner.Runner, current: Stage, *places: object) -> object:
        if current.name != stage:
            return promote(self, current, *places)
        if moment == "written":
            kill_myself()
        if moment == "moved":
            durable.move_into_place = lambda source, target: (move(source, target), kill_myself())
        promote(self, current, *places)
        kill_myself()

    def run_stage(self: runner.Runner, current: Stage, label: str, reason: str) -> None:
        if current.name == stage and moment == "early":
            original = current.run
            object.__setattr__(current, "run", lambda context: run_then_kill(context, original))
        run_unchanged(self, current, label, reason)

    run_unchanged = runner.Runner._run_stage
    runner.Runner._promote = promote_then_kill  # type: ignore[method-assign,assignment]
    runner.Runner._run_stage = run_stage  # type: ignore[method-assign]


def run_in_fork(recipe: str, engine: str, kill: tuple[str, str] | None) -> int:
    """Build in a fork; returns its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if kill is not None:
                kill_at(*kill)
            build(BuildRequest(recipe, output=Path(engine), selection=Selection()), Silent())
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def tell(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def main(recipe: str, engine: str, kills: list[str]) -> None:
    for kill in kills:
        stage, _, moment = kill.partition(":")
        tell(stage, moment, run_in_fork(recipe, engine, (stage, moment)))
    tell("all", "finished", run_in_fork(recipe, engine, None))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])

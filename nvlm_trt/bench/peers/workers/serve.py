"""Serve an engine of others to the benchmark over stdin and stdout: ``python serve.py MODULE``, in its environment.

MODULE is one of the files beside this one; its class `Engine` has what `serve` calls. A line of JSON is a message.
First comes the job, which is answered by what loading took. Then come requests (`id`, `ids`, `text`, `image`,
`max_tokens`), each of which is answered at its end by its tokens, the time of each, and how many tokens of prompt were
read; a `usage` is answered by the memory. The end of stdin ends the process. Times are those of `time.perf_counter()`,
which on Linux is one clock for all processes. Nothing is written while requests are computed but their ends.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

STATUS = Path("/proc/self/status")


def main() -> int:
    """Load the engine that the first line describes, and answer until stdin ends."""
    answers = _own_stdout()
    job = json.loads(sys.stdin.readline())
    try:
        module = importlib.import_module(sys.argv[1])  # in the folder of this script, which Python puts on its path
        module.prepare(job)
        before, started = _memory("VmRSS"), time.perf_counter()
        engine = module.Engine(job)
        seconds = time.perf_counter() - started
        _say(answers, {"loaded": {"load_s": seconds, "before_bytes": before, "settings": engine.settings}})
        _serve(engine, answers)
    except Exception as error:  # whatever another library raises: the benchmark tells it and goes on with the others
        _say(answers, {"error": f"{type(error).__name__}: {error}"})
        raise
    finally:
        sys.stderr.flush()
    os._exit(0)  # threads and destructors of others have nothing left to do, and may hang


def _serve(engine: Any, answers: TextIO) -> None:
    """The loop: take what has come, let the engine do a step, tell what has ended."""
    inbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(inbox,), daemon=True).start()
    under_way: dict[int, dict[str, Any]] = {}
    while True:
        for message in _arrived(inbox, wait=not under_way, linger=engine.gather_s):
            if message is None:
                return
            if "usage" in message:
                _say(answers, {"usage": {"peak_bytes": _memory("VmHWM")}})
                continue
            number = message["id"]
            under_way[number] = {"id": number, "tokens": [], "times": []}
            image = base64.b64decode(message["image"]) if message.get("image") else None
            engine.submit(number, message["ids"], message["max_tokens"], text=message.get("text"), image=image)
        for number, token, at, ended in engine.step() if under_way else ():
            answer = under_way[number]
            answer["tokens"].append(token)
            answer["times"].append(at)
            if ended:
                _say(answers, {**under_way.pop(number), "prompt_tokens": engine.prompts.pop(number)})


def _arrived(inbox: queue.SimpleQueue[Any], *, wait: bool, linger: float) -> list[Any]:
    """Messages that have come.

    Args:
        inbox: Where they come.
        wait: Whether there is nothing to do before one comes.
        linger: Seconds without a further message after which an engine that batches once begins; 0 for none.
    """
    found = [inbox.get()] if wait else []
    while True:
        try:
            found.append(inbox.get(timeout=linger) if wait and linger else inbox.get_nowait())
        except queue.Empty:
            return found


def _read(inbox: queue.SimpleQueue[Any]) -> None:
    for line in sys.stdin:
        inbox.put(json.loads(line))
    inbox.put(None)


def _own_stdout() -> TextIO:
    """The pipe to the benchmark; what libraries print goes to stderr."""
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return own


def _say(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def _memory(key: str) -> int:
    """A figure of this process in bytes."""
    return next(1024 * int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))


if __name__ == "__main__":
    sys.exit(main())

"""Environments of peers whose Python is this one, and engines that answer without computing."""

from __future__ import annotations

import sys
from pathlib import Path

from nvlm_trt.bench.peers.engines import INSTALLED

STAND_IN = '''
"""Answers every request with its place in the answer, a token a step."""

import sys
import time


def prepare(job):
    pass


class Engine:
    gather_s = 0.0

    def __init__(self, job):
        print("a library that writes to stdout")
        self.settings = f"stand-in, {job['max_requests']} at a time"
        self.prompts, self.left = {}, {}

    def submit(self, number, ids, max_tokens, *, text, image):
        if ids and ids[0] == -1:
            sys.exit("the engine has fallen over")
        self.prompts[number] = len(ids)
        self.left[number] = list(range(max_tokens))

    def step(self):
        at = time.perf_counter()
        found = [(number, left.pop(0), at, not left) for number, left in self.left.items()]
        self.left = {number: left for number, left in self.left.items() if left}
        return found
'''


def environment(folder: Path, name: str) -> Path:
    """An environment that counts as installed."""
    (folder / name / "bin").mkdir(parents=True)
    python = folder / name / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')  # a link would be taken for an environment of its own
    python.chmod(0o755)
    (folder / name / INSTALLED).touch()
    packages = folder / name / "lib" / "python3.11" / "site-packages" / "transformers-5.0.0.dist-info"
    packages.mkdir(parents=True)
    (packages / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 5.0.0\n")
    return folder / name


def stand_in_workers(folder: Path, workers: Path) -> Path:
    """The folder of workers, with the stand-in in place of every engine."""
    folder.mkdir()
    (folder / "serve.py").write_text((workers / "serve.py").read_text())
    for name in ("engine_hf", "engine_vllm", "engine_genai"):
        (folder / f"{name}.py").write_text(STAND_IN)
    return folder

"""The command line in this process, and a small engine to point it at."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nvlm_trt.cli.main import main
from nvlm_trt.pipeline.build import BuildRequest, build
from nvlm_trt.pipeline.plan import Selection
from nvlm_trt.pipeline.progress import Silent

RECIPE = """
target: cpu
vision_precision: fp32
decoder_precision: fp32
max_batch_size: 2
max_images: 2
max_input_len: 512
max_output_len: 64
verify_prompts: 2
verify_tokens: 6
"""


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object on stdout."""
        (line,) = self.out.splitlines()
        return json.loads(line)


@pytest.fixture
def nvlm_trt(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs the command line with some words."""

    def run(*words: object) -> Outcome:
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return run


@pytest.fixture(scope="session")
def small_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def small_engine(small_recipe: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An fp32 engine of the tiny checkpoint, built up to decoder-compile."""
    engine = tmp_path_factory.mktemp("engines") / "small"
    build(BuildRequest(str(small_recipe), tiny_checkpoint, engine, Selection("decoder-compile")), Silent())
    return engine


@pytest.fixture(scope="session")
def photograph(photographs: dict[str, Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photograph of 451 x 300 pixels as a file."""
    path = tmp_path_factory.mktemp("photographs") / "chelsea.png"
    photographs["chelsea"].save(path)
    return path

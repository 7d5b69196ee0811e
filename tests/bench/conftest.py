"""A small engine, and a report of round numbers: nothing here is timed."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvlm_trt.bench.report import Report
from nvlm_trt.pipeline.build import BuildRequest, build
from nvlm_trt.pipeline.plan import Selection
from nvlm_trt.pipeline.progress import Silent

from .made_up import made_columns, made_report, with_cases

RECIPE = """
target: cpu
vision_precision: fp32
decoder_precision: fp32
max_batch_size: 2
max_images: 1
max_input_len: 256
max_output_len: 16
cpu_threads: 1
"""


@pytest.fixture(scope="session")
def small_engine(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An fp32 engine of the tiny checkpoint, built up to decoder-compile."""
    folder = tmp_path_factory.mktemp("bench")
    recipe = folder / "small.yaml"
    recipe.write_text(RECIPE)
    build(BuildRequest(str(recipe), tiny_checkpoint, folder / "small", Selection("decoder-compile")), Silent())
    return folder / "small"


@pytest.fixture
def report() -> Report:
    """A report of round numbers."""
    return made_report()


@pytest.fixture
def scenario_report() -> Report:
    """The same with a case or two of every scenario."""
    report = made_report(with_cases(made_columns()))
    scenarios = ("load", "repeat", "turns", "stall", "prefill", "growth")
    return report.model_copy(update={"workload": report.workload.model_copy(update={"scenarios": scenarios})})

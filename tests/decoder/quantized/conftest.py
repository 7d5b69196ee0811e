"""A source, results of its calibration, and what it is converted to by format, tp and pp."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nvlm_trt.decoder.convert import convert_decoder
from nvlm_trt.model.checkpoint import Checkpoint

from .sources import FORMATS, make_source, write_results


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Two layers, 8 heads of 64, 4 kv heads; q, k and v are float32."""
    return make_source(tmp_path_factory.mktemp("quantize") / "source")


@pytest.fixture(scope="session")
def results(source: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("quantize") / "calibration", source)


@pytest.fixture(scope="session")
def converted(
    source: Checkpoint, results: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int, int], Path]:
    root = tmp_path_factory.mktemp("converted")

    def convert(form: str, tp: int, pp: int = 1) -> Path:
        path = root / f"{form}-tp{tp}pp{pp}"
        if not path.exists():
            convert_decoder(source, path, tp=tp, pp=pp, precision=FORMATS[form], calibration=results)
        return path

    return convert

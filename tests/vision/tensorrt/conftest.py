"""An export, a machine with the stand-in for TensorRT, and a build on it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest

from nvlm_trt.vision.build_tensorrt import TensorrtVisionSettings, build_vision_tensorrt
from nvlm_trt.vision.export import export_vision

from ..fake_tensorrt import Machine

SHAPE = "seven heads and no dummy"
SIDE = 56
SETTINGS = TensorrtVisionSettings(
    min_tiles=1, opt_tiles=5, max_tiles=12, workspace_bytes=3 << 30, optimization_level=4, hardware_compatibility="none"
)


@pytest.fixture(scope="module")
def export(checkpoint_of, tmp_path_factory):
    """A bf16 export with a bf16 table, as a gpu target has it. Read only."""
    out = tmp_path_factory.mktemp("export")
    export_vision(checkpoint_of(SHAPE), out, precision="bf16", output_dtype="bf16")
    return out


@pytest.fixture
def export_copy(export, tmp_path):
    """An export that a test may damage."""
    return shutil.copytree(export, tmp_path / "copy")


@pytest.fixture
def machine(monkeypatch):
    """A machine with TensorRT 10.14, and no GPU for torch."""
    made = Machine()
    monkeypatch.setitem(sys.modules, "tensorrt", made.package())
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return made


@dataclasses.dataclass
class Build:
    """Builds `source`, and keeps what was told."""

    source: Path
    out: Path
    cache: Path
    told: list = dataclasses.field(default_factory=list)
    steps: list = dataclasses.field(default_factory=list)

    def __call__(self, source=None, settings=SETTINGS, progress=None):
        self.out.mkdir(exist_ok=True)
        build_vision_tensorrt(
            (source or self.source) / "vision.onnx",
            self.out,
            settings=settings,
            timing_cache=self.cache,
            log=self.told.append,
            progress=progress or (lambda *step: self.steps.append(step)),
        )

    def names(self):
        return sorted(path.name for path in self.out.iterdir())

    def times(self):
        return json.loads(self.cache.read_bytes())["times"]


@pytest.fixture
def build(export, tmp_path):
    return Build(export, tmp_path / "engine", tmp_path / "cache" / "vision.cache")

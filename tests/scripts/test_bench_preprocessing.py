"""The benchmark of preprocessing runs all its ways, sees that they agree, and writes what it measured."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import ExifTags, Image


@pytest.fixture(scope="module")
def bench(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("bench_preprocessing")


def test_it_runs_and_reports_every_way(bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.json"
    bench.main(["--size", "640", "480", "--rounds", "1", "--json", str(file)])
    report = json.loads(file.read_text())
    assert report["image"]["tiles"] == 7
    assert {row["way"] for row in report["ways"]} == set(bench.WAYS)
    assert report["ways"][0]["way"] == "Pillow"
    assert report["ways"][0]["cpu_ratio"] == 1
    printed = capsys.readouterr().out
    assert all(f"| {way} |" in printed for way in bench.WAYS)
    assert "| server: resize and cut |" in printed


@pytest.mark.parametrize("size", [(448, 448), (640, 480)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_plain_pillow_gives_the_tiles_of_the_project(
    bench: ModuleType, size: tuple[int, int], mode: str, orientation: int
) -> None:
    file, exif = io.BytesIO(), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    bench.mosaic(*size).convert(mode).save(file, "JPEG", exif=exif)
    ways = [way(file.getvalue(), lambda name: None) for way in (bench.with_pillow, bench.with_the_project)]
    np.testing.assert_array_equal(*ways)


def test_a_way_with_other_tiles_ends_it(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["first", "first", "first", "other"])
    monkeypatch.setattr(bench.Worker, "run", lambda self: {"digests": [next(answers)], "tiles": 7})
    monkeypatch.setattr(bench.subprocess, "Popen", lambda *arguments, **options: Idle())
    with pytest.raises(SystemExit, match="library on 1 cores gives other tiles"):
        bench.compare(tmp_path / "none.jpg", 1)


class Idle:
    """A process that nobody asks."""

    def communicate(self) -> None:
        """It ends."""

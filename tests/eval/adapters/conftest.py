"""Made-up data sets in the formats of their publishers."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from nvlm_trt.eval.adapters.datasets import read_dataset
from nvlm_trt.eval.tasks import Sample


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def write(data: Path) -> Callable[[str, object], None]:
    """Writes a file below the data folder: an image where the content is bytes, JSON else."""

    def one(name: str, content: object = b"") -> None:
        path = data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content or png("red"))
        elif path.suffix == ".jsonl" and isinstance(content, list):
            path.write_text("\n".join(json.dumps(line) for line in content) + "\n", encoding="utf-8")
        else:
            path.write_text(json.dumps(content), encoding="utf-8")

    return one


@pytest.fixture
def write_chartqa(write: Callable[[str, object], None]) -> Callable[..., None]:
    """Writes the human half of ChartQA's test split, and an augmented one of one question; in the folder "test"."""

    def one(*human: object) -> None:
        write("test/test_human.json", [*human])
        write("test/test_augmented.json", [{"imgname": "augmented.png", "query": "Which?", "label": 5.5}])
        write("test/png/augmented.png")

    return one


@pytest.fixture
def read(data: Path, tmp_path: Path) -> Callable[..., tuple[Sample, ...]]:
    def one(name: str, limit: int | None = None) -> tuple[Sample, ...]:
        return read_dataset(name, data, tmp_path / "extracted", limit)

    return one


class _Batch:
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows

    def to_pylist(self) -> list[dict[str, Any]]:
        return self._rows


@pytest.fixture
def parquet(data: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, list[dict[str, Any]]], None]:
    """Makes a parquet file of rows, and a stand-in for pyarrow that reads it row by row.

    What the stand-in does is checked against pyarrow itself in test_parquet.py, where that is installed.
    """
    files: dict[Path, list[dict[str, Any]]] = {}

    class ParquetFile:
        def __init__(self, path: Path) -> None:
            self._rows = files[path]

        def iter_batches(self, batch_size: int) -> Iterator[_Batch]:
            for start in range(0, len(self._rows), batch_size):
                yield _Batch(self._rows[start : start + batch_size])

    arrow, reader = ModuleType("pyarrow"), ModuleType("pyarrow.parquet")
    arrow.ArrowException = type("ArrowException", (Exception,), {})  # type: ignore[attr-defined]
    reader.ParquetFile = ParquetFile  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyarrow", arrow)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", reader)

    def make(name: str, rows: list[dict[str, Any]]) -> None:
        path = data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"PAR1")
        files[path] = rows

    return make

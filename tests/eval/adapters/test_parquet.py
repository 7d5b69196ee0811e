"""Parquet files through pyarrow itself, where it is installed."""

from __future__ import annotations

import pytest

from nvlm_trt.errors import UserError

from .conftest import png

pyarrow = pytest.importorskip("pyarrow", reason="needs the extra eval: pyarrow", exc_type=ImportError)


def test_a_parquet_file_as_published_is_read_in_batches(data, read):
    import pyarrow.parquet

    rows = [
        {"image": {"bytes": png("blue"), "path": f"{index}.png"}, "question": f"{index}?", "answer": str(index)}
        for index in range(40)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), data / "test-00000-of-00001.parquet")
    samples = read("realworldqa")
    assert [sample.question for sample in samples] == [f"{index}?" for index in range(40)]
    assert samples[39].images[0].read_bytes() == png("blue")


def test_a_damaged_parquet_file_is_refused(data, read):
    (data / "test-00000-of-00001.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match="a parquet file cannot be read"):
        read("realworldqa")

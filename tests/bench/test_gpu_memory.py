"""GPU memory, as an nvidia-smi tells it that is none."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from nvlm_trt.bench.gpu_memory import GpuMemoryWatch

from .engines import on_path

GIVE_UP_S = 120.0
STEPS = """
echo "$@" >> {folder}/calls
case $(wc -l < {folder}/calls) in
    1) printf '1000\\n500\\n' ;;
    2) printf '1000\\n4500\\n' ;;
    *) printf '3000\\n500\\n' ;;
esac"""


def test_the_peak_is_seen_between_two_looks_at_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path(tmp_path, "nvidia-smi", STEPS.format(folder=tmp_path), monkeypatch)
    with GpuMemoryWatch(period_s=0.01) as watch:
        until = time.monotonic() + GIVE_UP_S
        while len((tmp_path / "calls").read_text().splitlines()) < 3:
            assert time.monotonic() < until, "nobody looks"
            time.sleep(0.01)
        assert watch.peak_bytes() == 4000 << 20  # of both GPUs, without the 1500 before
    after = (tmp_path / "calls").read_text().splitlines()
    time.sleep(0.05)
    assert (tmp_path / "calls").read_text().splitlines() == after
    assert set(after) == {"--query-gpu=memory.used --format=csv,noheader,nounits"}


@pytest.mark.parametrize("script", ["exit 9", "echo '[N/A]'"])
def test_where_nobody_tells_there_is_no_figure(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path(tmp_path, "nvidia-smi", script, monkeypatch)
    with GpuMemoryWatch() as watch:
        assert watch.peak_bytes() is None


def test_without_nvidia_smi_there_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with GpuMemoryWatch() as watch:
        assert watch.peak_bytes() is None

"""Memory of a quantised conversion."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .sources import make_source, write_results

PEAK_MEMORY = """
import re, sys
from pathlib import Path
import nvlm_trt.decoder.encode  # with torch, which is not what is measured
from nvlm_trt.decoder.convert import convert_decoder
from nvlm_trt.decoder.precision import decoder_precision
from nvlm_trt.model.checkpoint import Checkpoint

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

checkpoint = Checkpoint.open(Path(sys.argv[1]))
Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten: imports are not what is measured
before = peak()
convert_decoder(checkpoint, Path(sys.argv[3]), tp=2, pp=1, precision=decoder_precision("int4_awq"),
                calibration=Path(sys.argv[2]))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_layers(tmp_path: Path) -> None:
    peaks = {}
    for layers in (2, 6):
        checkpoint = make_source(tmp_path / f"source{layers}", decoder_layers=layers, intermediate_size=3072)
        results = write_results(tmp_path / f"results{layers}", checkpoint)
        arguments = [str(checkpoint.path), str(results), str(tmp_path / f"out{layers}")]
        command = [sys.executable, "-c", PEAK_MEMORY, *arguments]
        peaks[layers] = int(subprocess.run(command, capture_output=True, check=True, timeout=120).stdout)
    layer_bytes = 2 * 512 * (512 * 2 + 2 * 256 + 3 * 3072)
    assert layer_bytes > 10 << 20, "layers are large enough for growth to show"
    assert 0 < peaks[6] < peaks[2] + layer_bytes, json.dumps(peaks)

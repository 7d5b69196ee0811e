"""`nvlm-trt serve` refuses engines of another machine before it starts anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nvlm_trt.environment.built_with import BUILT_WITH, BuiltWith

Run = Callable[..., Any]


def test_engines_of_another_machine_are_refused_by_name(nvlm_trt: Run, tmp_path: Path) -> None:
    built = BuiltWith("10.14.1.48", "1.2.1", "580.65.06", "13.0", "NVIDIA H100", 90, 4)
    (tmp_path / "decoder" / "engine").mkdir(parents=True)
    (tmp_path / "decoder" / "engine" / BUILT_WITH).write_text(json.dumps(built.to_dict()))
    shown = nvlm_trt("serve", tmp_path)
    assert shown.code == 2
    assert "decoder/engine was built by TensorRT 10.14.1.48 and is met by none" in shown.err
    assert "decoder/engine was built for NVIDIA H100" in shown.err

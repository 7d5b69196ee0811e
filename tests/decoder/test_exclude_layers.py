"""Layers of the decoder that stay bf16 where the others are quantised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import openvino as ov
import pytest

from nvlm_trt.decoder.build_cpu import build_decoder_cpu, engine_bytes
from nvlm_trt.decoder.trtllm_checkpoint import TrtllmCheckpoint
from nvlm_trt.errors import RecipeError

LIMITS = {"precision": "int8_wo", "max_batch_size": 2, "max_seq_len": 64, "max_prompt_table_rows": 0}


def test_only_the_layers_that_are_named_keep_bf16_matrices(
    converted: Callable[[int, int], Path], tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    build_decoder_cpu(
        converted(1, 1), tmp_path, **LIMITS, exclude=(1,), progress=lambda done, total: seen.append((done, total))
    )
    kept = {
        node.get_friendly_name().split(".")[1]: str(node.get_element_type().get_type_name())
        for node in ov.Core().read_model(tmp_path / "model.xml").get_ordered_ops()
        if node.get_type_name() == "Constant"
        and node.get_friendly_name().endswith((".down.weight.int8", ".down.weight.bf16"))
    }
    assert kept == {"0": "i8", "1": "bf16", "2": "i8"}
    decoder = TrtllmCheckpoint.open(converted(1, 1)).decoder
    assert seen[-1][1] == engine_bytes(decoder, "int8_wo", (1,))
    assert engine_bytes(decoder, "int8_wo") < engine_bytes(decoder, "int8_wo", (1,)) < engine_bytes(decoder, "bf16")


def test_a_layer_that_the_decoder_has_not_is_refused_before_anything_is_written(
    converted: Callable[[int, int], Path], tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"exclude_layers names layers .*seen: \[3, 7\]; expected: 0 to 2"):
        build_decoder_cpu(converted(1, 1), tmp_path / "out", **LIMITS, exclude=(7, 1, 3))
    assert not (tmp_path / "out").exists()

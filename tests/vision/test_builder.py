"""The graph builder: names are unique, weights are planned page by page."""

from __future__ import annotations

import numpy as np
import pytest

from nvlm_trt.vision.builder import ALIGNMENT, GraphBuilder, WeightSource
from nvlm_trt.vision.dtypes import BF16, FP32

SOURCE = WeightSource("w", ((0, 3),), 5)


def test_weights_start_at_page_boundaries_and_never_overlap():
    builder = GraphBuilder(BF16, "data")
    for index in range(3):
        builder.weight(f"w{index}", SOURCE, (3, 5))
    assert [weight.offset for weight in builder.weights] == [0, ALIGNMENT, 2 * ALIGNMENT]
    assert builder.data_bytes == 2 * ALIGNMENT + 3 * 5 * 2


def test_equal_constants_are_shared_and_different_ones_may_not_share_a_name():
    builder = GraphBuilder(FP32, "data")
    assert builder.constant("c", [1, 2], np.int64) == builder.constant("c", [1, 2], np.int64)
    with pytest.raises(ValueError, match="another constant"):
        builder.constant("c", [1, 3], np.int64)


def test_two_weights_may_not_share_a_name():
    builder = GraphBuilder(FP32, "data")
    builder.weight("w", SOURCE, (3, 5))
    with pytest.raises(ValueError, match="another initializer"):
        builder.weight("w", SOURCE, (3, 5))


def test_an_fp32_graph_has_no_islands():
    assert GraphBuilder(FP32, "data").widen("x") == "x"
    assert GraphBuilder(FP32, "data").narrow("x") == "x"
    assert GraphBuilder(BF16, "data").widen("x") == "x/to_fp32"
    assert GraphBuilder(BF16, "data").narrow("x") == "x/to_bf16"

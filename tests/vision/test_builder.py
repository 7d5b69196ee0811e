"""The graph builder: names are unique, weights are planned page by page."""

from __future__ import annotations

import numpy as np
import pytest

from nvlm_trt.vision.builder import ALIGNMENT, GraphBuilder, WeightSource
from nvlm_trt.vision.dtypes import BF16, FP8, FP32, INT8, QUANTIZATIONS

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


def test_a_quantised_weight_is_followed_by_its_scale_in_the_graphs_type():
    builder = GraphBuilder(BF16, "data")
    value = builder.quantized_weight("rows", SOURCE, (3, 5), QUANTIZATIONS["int8"])
    builder.quantized_weight("whole", SOURCE, (3, 5), QUANTIZATIONS["fp8"])
    assert value == "rows/dequantized"
    assert [weight.dtype for weight in builder.weights] == [INT8, FP8]
    assert [(weight.offset, weight.scale.offset) for weight in builder.weights] == [
        (0, ALIGNMENT),
        (2 * ALIGNMENT, 3 * ALIGNMENT),
    ]
    assert builder.data_bytes == 3 * ALIGNMENT + 2
    initializers = builder.model("g", [], [], doc="", version="").graph.initializer
    assert {tensor.name: (list(tensor.dims), tensor.data_type) for tensor in initializers} == {
        "rows": ([3, 5], INT8.onnx),
        "rows/scale": ([3], BF16.onnx),
        "whole": ([3, 5], FP8.onnx),
        "whole/scale": ([], BF16.onnx),
    }


def test_all_quantised_values_of_a_graph_share_the_zero_point_that_names_their_type():
    builder = GraphBuilder(FP32, "data")
    for name in ("a", "b"):
        assert builder.quantized_value(name, "x", 0.5, QUANTIZATIONS["fp8"]) == f"{name}/dequantized"
    graph = builder.model("g", [], [], doc="", version="").graph
    assert [list(node.input) for node in graph.node if node.op_type == "QuantizeLinear"] == [
        ["x", "a/scale", "constants/zero_point"],
        ["x", "b/scale", "constants/zero_point"],
    ]
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert kinds == {"a/scale": FP32.onnx, "b/scale": FP32.onnx, "constants/zero_point": FP8.onnx}

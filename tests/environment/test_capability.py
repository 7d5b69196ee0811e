"""What a compute capability cannot run is refused, in the recipe's words and with the reason."""

from __future__ import annotations

import pytest

from nvlm_trt.environment.capability import refusals, remark


def reasons(capability, decoder="bf16", kv_cache=None, vision="bf16"):
    return "; ".join(refusals("GPU", capability, decoder=decoder, kv_cache=kv_cache, vision=vision))


@pytest.mark.parametrize("capability", [80, 86, 88])
@pytest.mark.parametrize(
    ("uses", "named"),
    [
        ({"decoder": "fp8"}, "decoder"),
        ({"kv_cache": "fp8"}, "KV cache"),
        ({"vision": "fp8"}, "vision engine"),
        ({"decoder": "fp8", "kv_cache": "fp8", "vision": "fp8"}, "decoder, KV cache, vision engine"),
    ],
)
def test_fp8_needs_ada_or_newer(capability, uses, named):
    words = f"8.{capability % 10}"
    assert reasons(capability, **uses) == f"GPU has no fp8 (compute capability {words}, 8.9 is needed): {named}"


@pytest.mark.parametrize("capability", [100, 103, 119])
@pytest.mark.parametrize(
    ("uses", "says"),
    [
        ({"decoder": "int8_wo"}, "8- and 4-bit weights (int8_wo)"),
        ({"decoder": "int4_wo"}, "8- and 4-bit weights (int4_wo)"),
        ({"decoder": "int4_awq"}, "8- and 4-bit weights (int4_awq)"),
        ({"decoder": "int8_sq"}, "SmoothQuant"),
        ({"kv_cache": "int8"}, "an int8 KV cache"),
    ],
)
def test_the_builder_refuses_integers_on_datacentre_blackwell(capability, uses, says):
    assert reasons(capability, **uses).startswith(f"trtllm-build refuses {says} for compute capability 1")


@pytest.mark.parametrize(
    ("capability", "uses"),
    [
        (80, {"decoder": "int8_sq", "kv_cache": "int8", "vision": "int8"}),
        (89, {"decoder": "fp8", "kv_cache": "fp8", "vision": "fp8"}),
        (90, {"decoder": "int4_awq", "kv_cache": "int8"}),
        (100, {"decoder": "fp8", "kv_cache": "fp8", "vision": "int8"}),
        (120, {"decoder": "int8_wo", "kv_cache": "int8"}),
    ],
)
def test_everything_else_is_left_to_the_builder(capability, uses):
    assert reasons(capability, **uses) == ""


@pytest.mark.parametrize(
    ("capability", "says"),
    [(75, "too old"), (80, "no fp8"), (89, ""), (90, ""), (100, "no int8_wo"), (120, "")],
)
def test_a_gpu_is_described_in_a_few_words(capability, says):
    assert remark(capability).startswith(says)
    assert bool(remark(capability)) == bool(says)

"""What a compute capability cannot run is refused with its reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nvlm_trt.plan.deployment import Deployment

Deploy = Callable[..., Deployment]


def reasons(plan: Deployment) -> str:
    return "; ".join(plan.sources.refusals(plan.gpu.name, plan.gpu.compute_capability))


@pytest.mark.parametrize(
    ("gpu", "fields", "says"),
    [
        ("a100-80g-sxm", {"decoder_precision": "fp8"}, "has no fp8 (compute capability 8.0, 8.9 is needed): decoder"),
        ("a100-80g-sxm", {"decoder_engine": {"kv_cache_precision": "fp8"}}, "8.9 is needed): KV cache"),
        ("a100-80g-sxm", {"vision_precision": "fp8"}, "8.9 is needed): vision engine"),
        ("b200", {"decoder_precision": "int8_wo"}, "refuses 8- and 4-bit weights (int8_wo)"),
        ("b200", {"decoder_precision": "int4_wo"}, "refuses 8- and 4-bit weights (int4_wo)"),
        ("b200", {"decoder_precision": "int4_awq"}, "refuses 8- and 4-bit weights (int4_awq)"),
        ("b200", {"decoder_precision": "int8_sq"}, "refuses SmoothQuant for compute capability 10.0"),
        ("b200", {"decoder_engine": {"kv_cache_precision": "int8"}}, "refuses an int8 KV cache"),
    ],
)
def test_what_a_gpu_cannot_run(gpu: str, fields: dict[str, object], says: str, deploy: Deploy) -> None:
    assert says in reasons(deploy(gpu, **fields))


@pytest.mark.parametrize(
    ("gpu", "fields"),
    [
        ("a100-80g-sxm", {"decoder_precision": "int8_sq", "decoder_engine": {"kv_cache_precision": "int8"}}),
        ("a100-80g-sxm", {"decoder_precision": "int4_awq", "vision_precision": "int8"}),
        ("l40s", {"decoder_precision": "fp8", "vision_precision": "fp8"}),
        ("h100-sxm", {"decoder_precision": "int8_wo"}),
        ("b200", {"decoder_precision": "fp8", "vision_precision": "int8"}),
        ("rtx-pro-6000-blackwell", {"decoder_precision": "int4_wo"}),
    ],
)
def test_what_it_can_run(gpu: str, fields: dict[str, object], deploy: Deploy) -> None:
    assert reasons(deploy(gpu, **fields)) == ""

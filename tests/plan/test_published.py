"""No published throughput is above the bound: it would refute the method.

Llama-3.3-70B in fp8 with an fp8 KV cache, TensorRT-LLM 1.0 at full load (TensorRT-LLM, docs/source/performance/
perf-overview.md): a decoder of nearly NVLM-D's shapes, without images. The share that was reached tells how far a real
server is from a plan: docs/planning.md quotes it, and is compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.plan.deployment import Deployment
from nvlm_trt.plan.memory import gpu_memory, kv_tokens
from nvlm_trt.plan.workload import Workload, speed_of

Deploy = Callable[..., Deployment]
PAGE = Path(__file__).parents[2] / "docs" / "planning.md"


def as_llama_70b(plan: Deployment) -> Deployment:
    """The same with Llama-3's MLP and vocabulary."""
    headers = plan.sources.checkpoint
    decoder = dataclasses.replace(headers.config.decoder, intermediate_size=28_672, vocab_size=128_256)
    config = dataclasses.replace(headers.config, decoder=decoder)
    checkpoint = Checkpoint(headers.path, config, headers.tensors)
    return dataclasses.replace(plan, sources=dataclasses.replace(plan.sources, checkpoint=checkpoint))


@pytest.mark.parametrize(
    ("gpu", "tp", "prompt", "answer", "published"),
    [
        ("h200-sxm", 1, 1000, 1000, 2909),
        ("h200-sxm", 1, 2048, 128, 442),
        ("h200-sxm", 1, 2048, 2048, 2003),
        ("h200-sxm", 1, 5000, 500, 566),
        ("h200-sxm", 1, 20_000, 2000, 283),
        ("h100-sxm", 2, 1000, 1000, 4205),
        ("h100-sxm", 2, 2048, 128, 762),
        ("h100-sxm", 2, 2048, 2048, 3082),
        ("h100-sxm", 2, 5000, 500, 898),
        ("h100-sxm", 2, 20_000, 2000, 437),
    ],
)
def test_published_tokens_a_second_are_half_to_three_quarters_of_the_bound(
    gpu: str, tp: int, prompt: int, answer: int, published: int, deploy: Deploy
) -> None:
    plan = as_llama_70b(deploy(gpu, tp=tp, decoder_precision="fp8"))
    text_only = [dataclasses.replace(memory, vision=0, prompt_table=0, activations=0) for memory in gpu_memory(plan)]
    room = kv_tokens(text_only, 64) // (prompt + answer // 2)
    speed = speed_of(plan, Workload(0, 1, 256, prompt, answer, concurrency=room))
    share = published / speed.output_tokens_per_s
    assert 0.45 < share < 0.80
    assert f"{published:,} tokens/s | {share:.0%} |" in PAGE.read_text(encoding="utf-8")

"""What a GPU model cannot run, by compute capability.

fp8 needs 8.9 (Ada, Hopper and newer). From 10.0 up to 12.0 trtllm-build refuses 8- and 4-bit weights (AWQ's count as
such), SmoothQuant and an int8 KV cache (TensorRT-LLM 1.x, tensorrt_llm/builder.py, before the network is optimised).
"""

from __future__ import annotations

from nvlm_trt.decoder.precision import KvCacheAlgo, Precision, QuantAlgo
from nvlm_trt.plan.gpus import Gpu

FP8_SINCE = 89
DATACENTRE_BLACKWELL = range(100, 120)


def refusals(gpu: Gpu, precision: Precision, vision_precision: str) -> tuple[str, ...]:
    """Why the GPU cannot run these precisions, one reason each; empty where it can.

    Args:
        gpu: The GPU model.
        precision: Of the decoder, its KV cache included.
        vision_precision: Of the vision engine, as recipes name it.
    """
    capability = f"{gpu.compute_capability // 10}.{gpu.compute_capability % 10}"
    algo, cache = precision.quantization.quant_algo, precision.quantization.kv_cache_quant_algo
    reasons = []
    if gpu.compute_capability < FP8_SINCE:
        uses = {
            "decoder": algo == QuantAlgo.FP8,
            "KV cache": cache == KvCacheAlgo.FP8,
            "vision engine": vision_precision == "fp8",
        }
        names = [name for name, uses_fp8 in uses.items() if uses_fp8]
        if names:
            reasons.append(
                f"{gpu.name} has no fp8 (compute capability {capability}, 8.9 is needed): {', '.join(names)}"
            )
    if gpu.compute_capability in DATACENTRE_BLACKWELL:
        where = f"for compute capability {capability} (10.0 up to 12.0)"
        if algo in (QuantAlgo.INT8_WEIGHTS, QuantAlgo.INT4_WEIGHTS, QuantAlgo.AWQ):
            reasons.append(f"trtllm-build refuses 8- and 4-bit weights ({algo}) {where}")
        if algo == QuantAlgo.SMOOTH_QUANT:
            reasons.append(f"trtllm-build refuses SmoothQuant {where}")
        if cache == KvCacheAlgo.INT8:
            reasons.append(f"trtllm-build refuses an int8 KV cache {where}")
    return tuple(reasons)

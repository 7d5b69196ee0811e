"""What a GPU cannot run, by compute capability, in the words of a recipe.

fp8 needs 8.9 (Ada, Hopper and newer). From 10.0 up to 12.0 trtllm-build refuses 8- and 4-bit weights (AWQ's count as
such), SmoothQuant and an int8 KV cache (TensorRT-LLM 1.x, tensorrt_llm/builder.py, before the network is optimised).
bfloat16 needs 8.0 (Ampere), which is also the oldest that TensorRT-LLM 1.x supports.
"""

from __future__ import annotations

from nvlm_trt.environment.gpus import capability_in_words

OLDEST = 80
FP8_SINCE = 89
DATACENTRE_BLACKWELL = range(100, 120)

FEW_BIT_WEIGHTS = ("int8_wo", "int4_wo", "int4_awq")


def refusals(gpu: str, compute_capability: int, *, decoder: str, kv_cache: str | None, vision: str) -> tuple[str, ...]:
    """Why a GPU cannot run these precisions, one reason each; empty where it can.

    Args:
        gpu: Name of the GPU.
        compute_capability: 90 for 9.0.
        decoder: `decoder_precision` of the recipe.
        kv_cache: "fp8" or "int8"; None where keys and values are kept in the decoder's own dtype.
        vision: `vision_precision` of the recipe.
    """
    capability = capability_in_words(compute_capability)
    reasons = []
    if compute_capability < FP8_SINCE:
        uses = {"decoder": decoder, "KV cache": kv_cache, "vision engine": vision}
        names = [name for name, precision in uses.items() if precision == "fp8"]
        if names:
            reasons.append(f"{gpu} has no fp8 (compute capability {capability}, 8.9 is needed): {', '.join(names)}")
    if compute_capability in DATACENTRE_BLACKWELL:
        where = f"for compute capability {capability} (10.0 up to 12.0)"
        if decoder in FEW_BIT_WEIGHTS:
            reasons.append(f"trtllm-build refuses 8- and 4-bit weights ({decoder}) {where}")
        if decoder == "int8_sq":
            reasons.append(f"trtllm-build refuses SmoothQuant {where}")
        if kv_cache == "int8":
            reasons.append(f"trtllm-build refuses an int8 KV cache {where}")
    return tuple(reasons)


def remark(compute_capability: int) -> str:
    """What a GPU lacks among the precisions of this project, in a few words; empty if nothing."""
    if compute_capability < OLDEST:
        return "too old: TensorRT-LLM and bfloat16 need compute capability 8.0"
    if compute_capability < FP8_SINCE:
        return "no fp8"
    if compute_capability in DATACENTRE_BLACKWELL:
        return "no int8_wo, int4_wo, int4_awq, int8_sq, no int8 KV cache"
    return ""

"""A plan as JSON: every figure with its unit in its key."""

from __future__ import annotations

from collections.abc import Sequence

from nvlm_trt.datasheets.datasheet import Datasheet
from nvlm_trt.plan.costs import BuildCosts
from nvlm_trt.plan.deployment import Deployment
from nvlm_trt.plan.flops import attention_flops, prefill_flops, vision_flops_per_tile
from nvlm_trt.plan.memory import GpuMemory
from nvlm_trt.plan.roofline import Bound
from nvlm_trt.plan.sizes import tile_tensor_bytes
from nvlm_trt.plan.verdict import Capacity, Verdict
from nvlm_trt.plan.workload import Speed, Workload

METHOD = "roofline: the least time that datasheet peaks allow; a bound, not a promise"


def verdict_facts(verdict: Verdict, remedies: Sequence[str], gpus: int) -> dict[str, object]:
    """The plan of the recipe as it is.

    Args:
        verdict: The judged deployment.
        remedies: What would make it do what is asked.
        gpus: GPUs that there are.
    """
    deployment = verdict.deployment
    return {
        "recipe": deployment.recipe.name,
        "model": model_facts(deployment),
        "gpu": gpu_facts(deployment.gpu),
        "gpus": gpus,
        "gpus_used": deployment.gpus,
        "copies": gpus // deployment.gpus,
        "workload": workload_facts(verdict.workload),
        "verdict": {
            "fits": verdict.fits,
            "does_what_is_asked": verdict.ok,
            "blockers": list(verdict.blockers),
            "misses": list(verdict.misses),
            "remedies": list(remedies),
        },
        "memory": None if verdict.capacity is None else memory_facts(deployment, verdict.capacity),
        "request": {
            "tiles_uint8_bytes": tile_tensor_bytes(deployment.config, verdict.workload.total_tiles),
            "prompt_table_bytes": deployment.prompt_table_bytes(verdict.workload.visual_tokens),
        },
        "speed": None if verdict.speed is None else speed_facts(deployment, verdict.speed),
        "method": METHOD,
        "corrections": [
            {"name": name, "value": correction.value, "source": correction.source}
            for name, correction in deployment.gpu.corrections.applied().items()
        ],
    }


def model_facts(deployment: Deployment) -> dict[str, object]:
    """The model and how it is cut."""
    recipe, config = deployment.recipe, deployment.config
    cache = deployment.precision.quantization.kv_cache_quant_algo
    return {
        "name": deployment.sources.checkpoint.path.name,
        "tp": recipe.tp,
        "pp": recipe.pp,
        "decoder_precision": recipe.decoder_precision,
        "kv_cache_precision": (cache or deployment.precision.dtype.name).lower(),
        "vision_precision": recipe.vision_precision,
        "intermediate_size": config.decoder.intermediate_size,
        "stored_intermediate_size": deployment.decoder.intermediate_size,
        "vision_gpus": deployment.vision_gpus,
        "vision_batch_tiles": deployment.vision_batch,
        "max_batch_size_requests": recipe.max_batch_size,
        "max_num_tokens": deployment.max_num_tokens,
        "max_seq_len_tokens": deployment.sources.max_seq_len,
        "max_prompt_table_rows": deployment.sources.max_table_rows,
    }


def gpu_facts(gpu: Datasheet) -> dict[str, object]:
    """The GPU model's figures and their sources."""
    return {
        "name": gpu.name,
        "title": gpu.title,
        "compute_capability": gpu.compute_capability,
        "memory_bytes": gpu.memory_bytes,
        "bandwidth_bytes_per_s": gpu.bandwidth,
        "peak_tflops": gpu.peak_tflops.model_dump(),
        "interconnect": gpu.interconnect.kind,
        "interconnect_both_directions_bytes_per_s": gpu.interconnect.gb_per_s * 1e9,
        "sources": gpu.sources.model_dump(),
    }


def workload_facts(workload: Workload) -> dict[str, object]:
    """The requests."""
    return {
        "images": workload.images,
        "tiles_per_image": workload.tiles,
        "visual_tokens": workload.visual_tokens,
        "text_tokens": workload.text_tokens,
        "prompt_tokens": workload.prompt_tokens,
        "output_tokens": workload.output_tokens,
        "request_tokens": workload.request_tokens,
        "concurrency_requests": workload.concurrency,
        "ttft_limit_ms": workload.ttft_limit_ms,
    }


def memory_facts(deployment: Deployment, capacity: Capacity) -> dict[str, object]:
    """What lies on the GPUs and what the rest holds."""
    return {
        "memory_share": deployment.assumptions.memory_share,
        "reserve_bytes": deployment.assumptions.reserve_bytes,
        "gpus": [_gpu_memory(memory) for memory in capacity.gpus],
        "kv_bytes_per_token": sum(memory.kv_per_token for memory in capacity.gpus),
        "tokens_per_block": deployment.recipe.decoder_engine.tokens_per_block,
        "kv_tokens": capacity.kv_tokens,
        "requests": capacity.requests,
        "tables_under_way_bytes": capacity.tables,
    }


def _gpu_memory(memory: GpuMemory) -> dict[str, object]:
    return {
        "memory_bytes": memory.memory,
        "usable_bytes": memory.usable,
        "reserve_bytes": memory.reserve,
        "decoder_weights_bytes": memory.decoder,
        "vision_engine_bytes": memory.vision,
        "prompt_table_bytes": memory.prompt_table,
        "activations_estimate_bytes": memory.activations,
        "left_for_kv_cache_bytes": memory.left,
        "kv_bytes_per_token": memory.kv_per_token,
        "kv_tokens": memory.kv_tokens,
        "left_beside_kv_cache_bytes": memory.spare,
    }


def speed_facts(deployment: Deployment, speed: Speed) -> dict[str, object]:
    """Bounds on what a workload sees."""
    workload = speed.workload
    busiest = -(-workload.total_tiles // deployment.vision_gpus)
    return {
        "vision_flops_per_tile": vision_flops_per_tile(deployment.config),
        "vision_tiles_on_busiest_gpu": busiest,
        "vision": _bound(speed.vision),
        "prefill_flops": prefill_flops(deployment.decoder, workload.prompt_tokens),
        "prefill_attention_flops": attention_flops(deployment.decoder, workload.prompt_tokens),
        "prefill": _bound(speed.prefill),
        "ttft_alone_ms": 1e3 * speed.first_token_s,
        "ttft_ms": 1e3 * speed.ttft_s,
        "ttft_burst_ms": 1e3 * speed.burst_ttft_s,
        "decode_context_tokens": workload.mean_context,
        "itl_ms": 1e3 * speed.step.seconds,
        "itl_with_other_prompts_ms": 1e3 * speed.mean_itl_s,
        "requests_per_s": speed.requests_per_s,
        "output_tokens_per_s": speed.output_tokens_per_s,
        "steps": [
            {
                "batch_requests": step.batch,
                "engine": _bound(step.engine),
                "prompt_tables_ms": 1e3 * step.tables_s,
                "itl_ms": 1e3 * step.seconds,
                "output_tokens_per_s": step.tokens_per_s,
            }
            for step in speed.steps
        ],
        "compute_bound_batch_requests": speed.compute_bound_batch,
        "prefill_all_reduce_sent_bytes": speed.all_reduce_bytes,
        "prefill_all_reduce_at_link_speed_ms": None if speed.all_reduce_s is None else 1e3 * speed.all_reduce_s,
    }


def _bound(bound: Bound) -> dict[str, object]:
    return {
        "ms": bound.milliseconds,
        "bound_by": bound.by,
        "compute_ms": 1e3 * bound.compute_s,
        "memory_ms": 1e3 * bound.memory_s,
        "communication_ms": 1e3 * bound.communication_s,
    }


def choice_facts(verdict: Verdict, chosen: Verdict | None) -> dict[str, object]:
    """One row of the table of choices."""
    deployment, capacity, speed = verdict.deployment, verdict.capacity, verdict.speed
    return {
        "tp": deployment.recipe.tp,
        "decoder_precision": deployment.recipe.decoder_precision,
        "gpus": deployment.gpus,
        "fits": verdict.fits,
        "does_what_is_asked": verdict.ok,
        "chosen": verdict is chosen,
        "kv_tokens": capacity.kv_tokens if capacity else None,
        "requests": capacity.requests if capacity else None,
        "ttft_ms": 1e3 * speed.ttft_s if speed else None,
        "itl_ms": 1e3 * speed.step.seconds if speed else None,
        "requests_per_s": speed.requests_per_s if speed else None,
        "blockers": list(verdict.blockers),
        "misses": list(verdict.misses),
    }


def change_facts(after_change: tuple[Verdict, str] | None) -> dict[str, object] | None:
    """A cheaper choice that does what is asked after one change."""
    if after_change is None:
        return None
    verdict, words = after_change
    recipe = verdict.deployment.recipe
    return {
        "tp": recipe.tp,
        "decoder_precision": recipe.decoder_precision,
        "gpus": verdict.deployment.gpus,
        "change": words,
    }


def cost_facts(costs: BuildCosts) -> dict[str, object]:
    """What a build takes."""
    return {
        "disk_rate_bytes_per_s": costs.disk_rate,
        "unknown": costs.unknown,
        "disk_bytes": costs.disk_bytes,
        "stages": [
            {
                "name": stage.name,
                "checkpoint_read_bytes": stage.read_bytes,
                "disk_bytes": stage.disk_bytes,
                "host_memory_bytes": stage.memory_bytes,
                "seconds_at_disk_rate": stage.seconds,
            }
            for stage in costs.stages
        ],
    }

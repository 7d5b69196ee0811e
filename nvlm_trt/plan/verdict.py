"""Whether a deployment fits and does what is asked of it; every reason against it in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nvlm_trt.decoder.trtllm_layout import check_parallelism
from nvlm_trt.errors import RecipeError
from nvlm_trt.pipeline.preflight import in_words
from nvlm_trt.plan.deployment import Deployment
from nvlm_trt.plan.memory import GpuMemory, gpu_memory, kv_tokens, requests_that_fit
from nvlm_trt.plan.workload import Speed, Workload, speed_of


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the memory holds.

    Attributes:
        gpus: The memory of every GPU.
        kv_tokens: Tokens that the KV cache holds.
        requests: Requests of the workload that it holds at a time.
        tables: Bytes of the prompt tables of the workload's requests under way, which lie on every GPU, each in a piece
            of its own, from the first step of its request to the last (TensorRT-LLM, promptTuningBuffers.cpp, fill).
    """

    gpus: tuple[GpuMemory, ...]
    kv_tokens: int
    requests: int
    tables: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """A deployment, judged.

    Attributes:
        deployment: What is judged.
        workload: For which requests.
        capacity: None where the shapes cannot be split like that.
        speed: None where it cannot run: what does not run has no speed.
        blockers: Why it cannot run at all: GPU model, number of GPUs, shapes, memory.
        misses: What it falls short of: the recipe's limits, the requests at a time, the latency.
    """

    deployment: Deployment
    workload: Workload
    capacity: Capacity | None
    speed: Speed | None
    blockers: tuple[str, ...]
    misses: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether it runs, with room for one request at least."""
        return not self.blockers

    @property
    def ok(self) -> bool:
        """Whether it runs and does all that is asked."""
        return not self.blockers and not self.misses


def judge(deployment: Deployment, workload: Workload, gpus: int | None = None) -> Verdict:
    """Judge a deployment.

    Args:
        deployment: What to judge.
        workload: The requests.
        gpus: GPUs that there are; None for as many as it needs.
    """
    recipe, precision = deployment.recipe, deployment.precision
    blockers = list(deployment.refusals)
    misses = list(_beyond_limits(deployment, workload))
    if gpus is not None and gpus < deployment.gpus:
        blockers.append(f"tp {recipe.tp} x pp {recipe.pp} needs {deployment.gpus} GPUs, there are {gpus}")
    try:
        check_parallelism(deployment.config.decoder, recipe.tp, recipe.pp, precision)
    except RecipeError as error:
        return Verdict(deployment, workload, None, None, (*blockers, str(error)), tuple(misses))
    capacity = capacity_of(deployment, workload)
    blockers += _memory_faults(capacity, workload)
    if blockers:
        return Verdict(deployment, workload, capacity, None, tuple(blockers), tuple(misses))
    speed = speed_of(deployment, workload)
    misses += _short_of_targets(capacity, speed)
    return Verdict(deployment, workload, capacity, speed, (), tuple(misses))


def capacity_of(deployment: Deployment, workload: Workload) -> Capacity:
    """What the memory of a deployment holds.

    Raises:
        RecipeError: the shapes do not allow the recipe's tp and pp at its precision.
    """
    block = deployment.recipe.decoder_engine.tokens_per_block
    memory = gpu_memory(deployment)
    tokens = kv_tokens(memory, block)
    tables = workload.concurrency * deployment.prompt_table_bytes(workload.visual_tokens)
    return Capacity(memory, tokens, requests_that_fit(tokens, workload.request_tokens, block), tables)


def _memory_faults(capacity: Capacity, workload: Workload) -> Iterator[str]:
    fullest = min(range(len(capacity.gpus)), key=lambda index: capacity.gpus[index].left)
    gpu = capacity.gpus[fullest]
    if gpu.left < 0:
        yield (
            f"GPU {fullest} lacks {in_words(-gpu.left)}: {in_words(gpu.loaded)} before any KV cache, "
            f"{in_words(gpu.loaded + gpu.left)} may be used"
        )
    elif capacity.requests < 1:
        yield f"the KV cache holds {capacity.kv_tokens:,} tokens, one request has {workload.request_tokens:,}"


def _beyond_limits(deployment: Deployment, workload: Workload) -> Iterator[str]:
    """What the engines would not take, whatever the GPUs."""
    recipe = deployment.recipe
    limits = (
        ("images", workload.images, "max_images", recipe.max_images),
        ("tiles an image", workload.tiles, "max_tiles with its thumbnail", deployment.tiles_per_image),
        ("tokens in the prompt", workload.prompt_tokens, "max_input_len", recipe.max_input_len),
        ("tokens in the answer", workload.output_tokens, "max_output_len", recipe.max_output_len),
        ("tokens in all", workload.request_tokens, "max_seq_len", deployment.sources.max_seq_len),
        ("requests at a time", workload.concurrency, "max_batch_size", recipe.max_batch_size),
    )
    for what, asked, name, limit in limits:
        if asked > limit:
            yield f"{asked:,} {what}, {name} is {limit:,}"


def _short_of_targets(capacity: Capacity, speed: Speed) -> Iterator[str]:
    workload = speed.workload
    if capacity.requests < workload.concurrency:
        yield f"the KV cache holds {capacity.requests:,} requests, not {workload.concurrency:,}"
    fullest = min(range(len(capacity.gpus)), key=lambda index: capacity.gpus[index].spare)
    gpu = capacity.gpus[fullest]
    if capacity.tables > gpu.spare:
        yield (
            f"GPU {fullest} lacks {in_words(capacity.tables - gpu.spare)} for prompt tables: those of "
            f"{workload.concurrency:,} requests take {in_words(capacity.tables)}, decoder_engine.kv_cache_fraction "
            f"{gpu.kv_fraction:g} leaves {in_words(gpu.spare)}"
        )
    limit = workload.ttft_limit_ms
    if limit is not None and speed.ttft_s * 1e3 > limit:
        yield f"time to first token is {speed.ttft_s * 1e3:.0f} ms at best, {limit:.0f} ms are asked for"

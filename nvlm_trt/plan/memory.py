"""What lies on each GPU, and how many tokens and requests the memory that is left holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nvlm_trt.plan.deployment import Deployment
from nvlm_trt.plan.sizes import (
    decoder_activation_bytes,
    kv_bytes_per_token,
    rank_weights,
    vision_activation_bytes,
    vision_engine_bytes,
)


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Bytes on one GPU.

    Attributes:
        memory: As sold.
        usable: The share of it that is used at most.
        reserve: CUDA context, NCCL, workspaces, server.
        decoder: The rank's weights.
        vision: The vision engine's weights, where it has one.
        prompt_table: The buffers of the batches' prompt tables.
        activations: Of decoder and vision engine, an estimate.
        kv_per_token: Bytes of a token in the rank's KV cache.
        kv_fraction: Share of what is free after loading that the runtime gives to the KV cache.
    """

    memory: int
    usable: int
    reserve: int
    decoder: int
    vision: int
    prompt_table: int
    activations: int
    kv_per_token: int
    kv_fraction: float

    @property
    def loaded(self) -> int:
        """Everything but the KV cache."""
        return self.reserve + self.decoder + self.vision + self.prompt_table + self.activations

    @property
    def left(self) -> int:
        """What the KV cache may take; negative where the rest does not fit.

        Two limits hold: the usable share, and the fraction that the runtime takes of the memory it finds free
        (`kv_cache_free_gpu_mem_fraction`).
        """
        return min(self.usable - self.loaded, int(self.kv_fraction * (self.memory - self.loaded)))

    @property
    def spare(self) -> int:
        """What the fraction leaves beside the KV cache, for what is allocated while serving."""
        return max(0, int((1 - self.kv_fraction) * (self.memory - self.loaded)))

    @property
    def kv_tokens(self) -> int:
        """Tokens that the rank's KV cache holds."""
        return max(0, self.left // self.kv_per_token)


def gpu_memory(deployment: Deployment) -> tuple[GpuMemory, ...]:
    """The memory of every GPU of the deployment, node after node.

    Raises:
        RecipeError: the shapes do not allow the recipe's tp and pp at its precision.
    """
    recipe, decoder, precision = deployment.recipe, deployment.decoder, deployment.precision
    config, gpu, batch = deployment.config, deployment.gpu, deployment.recipe.max_batch_size
    engine = vision_engine_bytes(config, recipe.vision_precision)
    tiles = vision_activation_bytes(config, recipe.vision_precision, deployment.vision_batch)
    found = []
    for index, rank in enumerate(deployment.placed_ranks):
        sees = index < deployment.vision_gpus
        step = decoder_activation_bytes(decoder, rank, precision, deployment.max_num_tokens, batch)
        found.append(
            GpuMemory(
                memory=gpu.memory_bytes,
                usable=int(deployment.assumptions.memory_share * gpu.memory_bytes),
                reserve=deployment.assumptions.reserve_bytes,
                decoder=rank_weights(decoder, deployment.stage_ranks[rank.stage], precision).total,
                vision=engine if sees else 0,
                prompt_table=deployment.prompt_buffer_bytes,
                activations=step + (tiles if sees else 0),
                kv_per_token=kv_bytes_per_token(decoder, rank, precision),
                kv_fraction=recipe.decoder_engine.kv_cache_fraction,
            )
        )
    return tuple(found)


def kv_tokens(gpus: Sequence[GpuMemory], tokens_per_block: int) -> int:
    """Tokens that the KV cache holds: every GPU holds its part of every token, so the fullest one decides.

    Args:
        gpus: The GPUs of one set of engines.
        tokens_per_block: The cache is dealt out in blocks of so many tokens.
    """
    return min(gpu.kv_tokens for gpu in gpus) // tokens_per_block * tokens_per_block


def requests_that_fit(tokens: int, request_tokens: int, tokens_per_block: int) -> int:
    """Requests whose prompt and whole answer the KV cache holds at a time, in whole blocks.

    Args:
        tokens: What the cache holds.
        request_tokens: Prompt and answer of one request.
        tokens_per_block: Tokens of a block.
    """
    return tokens // tokens_per_block // -(-request_tokens // tokens_per_block)

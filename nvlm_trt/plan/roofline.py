"""How fast the parts can be at best: the larger of what arithmetic and what memory traffic take at datasheet speed.

Nothing overlaps and nothing is lost between kernels; kernels reach the datasheet unless the GPU model carries measured
corrections. So these are bounds: a real engine is slower. All-reduces between GPUs count only with a correction, and
their transfer only inside a node: nothing is known of the network between nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nvlm_trt.datasheets.datasheet import ShareCorrection
from nvlm_trt.plan.deployment import Deployment
from nvlm_trt.plan.flops import decode_flops, layer_elements, prefill_flops, vision_flops_per_tile
from nvlm_trt.plan.sizes import kv_bytes_per_token, rank_weights, vision_engine_bytes

ALL_REDUCES_PER_LAYER = 2
"""After attention.dense and after mlp.proj, whose inputs are split over the ranks."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The least time of a part.

    Attributes:
        compute_s: Seconds of its arithmetic.
        memory_s: Seconds of its memory traffic.
        communication_s: Seconds of all-reduces, added to the larger of the two; 0 without a correction.
    """

    compute_s: float
    memory_s: float
    communication_s: float = 0.0

    @property
    def seconds(self) -> float:
        """The bound."""
        return max(self.compute_s, self.memory_s) + self.communication_s

    @property
    def milliseconds(self) -> float:
        """The bound in milliseconds."""
        return self.seconds * 1e3

    @property
    def by(self) -> Literal["compute", "memory"]:
        """What bounds it."""
        return "compute" if self.compute_s > self.memory_s else "memory"


@dataclass(frozen=True, slots=True)
class Roofline:
    """Least times on the GPUs of a deployment."""

    deployment: Deployment

    def vision(self, tiles: int) -> Bound:
        """The vision engine on a request's tiles, spread over the GPUs that have one.

        The busiest GPU has ``ceil(tiles / GPUs)`` tiles, and reads the engine's weights once; without tiles it is idle.
        """
        deployment = self.deployment
        recipe, gpu = deployment.recipe, deployment.gpu
        if tiles == 0:
            return Bound(0.0, 0.0)
        busiest = -(-tiles // deployment.vision_gpus)
        share = _share(gpu.corrections.vision_share_of_peak)
        return Bound(
            compute_s=busiest * vision_flops_per_tile(deployment.config) / (gpu.peak(recipe.vision_precision) * share),
            memory_s=vision_engine_bytes(deployment.config, recipe.vision_precision) / gpu.bandwidth,
        )

    def prefill(self, tokens: int) -> Bound:
        """Reading a prompt: its FLOPs split over the tensor-parallel ranks; stages of a pipeline follow one another."""
        deployment = self.deployment
        gpu = deployment.gpu
        return Bound(
            compute_s=prefill_flops(deployment.decoder, tokens) / deployment.recipe.tp / self._decoder_peak(),
            memory_s=self._weight_bytes() / gpu.bandwidth,
            communication_s=self._all_reduce_latency() + self._prefill_transfer(tokens),
        )

    def step(self, batch: int, context: int) -> Bound:
        """The engine in one decode step of `batch` requests that see `context` tokens each.

        Memory traffic is ``W + batch x context x KV bytes``, W all weights but the embedding, of one rank of every
        stage: the stages follow one another.
        """
        deployment = self.deployment
        decoder, precision = deployment.decoder, deployment.precision
        cache = sum(kv_bytes_per_token(decoder, rank, precision) for rank in deployment.stage_ranks)
        traffic = self._weight_bytes() + batch * context * cache
        bandwidth = deployment.gpu.bandwidth * _share(deployment.gpu.corrections.decode_share_of_bandwidth)
        return Bound(
            compute_s=batch * decode_flops(decoder, context) / deployment.recipe.tp / self._decoder_peak(),
            memory_s=traffic / bandwidth,
            communication_s=self._all_reduce_latency(),
        )

    def tables(self, batch: int, rows: int) -> float:
        """Seconds before a step in which the prompt tables of its requests, of so many rows each, are copied.

        ``2 x batch x table``, read and written in the GPU's own memory: at every step each table goes into the buffer
        of the batch again, also those of requests whose prompt is long read, and the engine waits for it on its stream
        (TensorRT-LLM, batch_manager/promptTuningBuffers.cpp, fill). Every rank copies them whole; those of a pipeline's
        later stages do so before their turn. No correction is about copies.
        """
        return 2 * batch * self.deployment.prompt_table_bytes(rows) / self.deployment.gpu.bandwidth

    def compute_bound_batch(self) -> int:
        """Requests from which on the matrix products of a step are bound by arithmetic: ``peak x b / (2 bandwidth)``.

        b is the bytes of a weight with its scales: 295 on an H100 in bf16 and in fp8 (whose weights have half the bytes
        and whose peak is twice as high), a quarter of that with 4-bit weights that are multiplied in bf16.
        """
        deployment = self.deployment
        rank = deployment.ranks[0]
        weights = rank_weights(deployment.decoder, rank, deployment.precision).linear
        layers = -(-deployment.decoder.num_layers // deployment.recipe.pp)
        elements = layers * layer_elements(deployment.decoder) / deployment.recipe.tp
        bandwidth = deployment.gpu.bandwidth * _share(deployment.gpu.corrections.decode_share_of_bandwidth)
        return round(self._decoder_peak() * weights / elements / 2 / bandwidth)

    def all_reduce_bytes(self, tokens: int) -> float:
        """Bytes that a GPU sends in the all-reduces of `tokens` tokens: ``2 (tp - 1) / tp`` of each payload (ring)."""
        decoder, tp = self.deployment.decoder, self.deployment.recipe.tp
        payload = tokens * decoder.hidden_size * self.deployment.precision.dtype.torch.itemsize
        return ALL_REDUCES_PER_LAYER * decoder.num_layers * payload * 2 * (tp - 1) / tp

    def all_reduce_s(self, tokens: int) -> float | None:
        """Seconds of that at the speed of the GPUs' interconnect; None where it crosses the network between nodes."""
        if self.deployment.reduces_over_network:
            return None
        return self.all_reduce_bytes(tokens) / self.deployment.gpu.link

    def _weight_bytes(self) -> int:
        deployment = self.deployment
        decoder, precision = deployment.decoder, deployment.precision
        return sum(rank_weights(decoder, rank, precision).read_per_step for rank in deployment.stage_ranks)

    def _decoder_peak(self) -> float:
        gpu = self.deployment.gpu
        return gpu.peak(self.deployment.recipe.decoder_precision) * _share(gpu.corrections.prefill_share_of_peak)

    def _all_reduce_latency(self) -> float:
        latency = self.deployment.gpu.corrections.all_reduce_latency_us
        if latency is None or self.deployment.recipe.tp == 1:
            return 0.0
        return ALL_REDUCES_PER_LAYER * self.deployment.decoder.num_layers * latency.value * 1e-6

    def _prefill_transfer(self, tokens: int) -> float:
        share, seconds = self.deployment.gpu.corrections.interconnect_share, self.all_reduce_s(tokens)
        return 0.0 if share is None or seconds is None else seconds / share.value


def _share(correction: ShareCorrection | None) -> float:
    return 1.0 if correction is None else correction.value

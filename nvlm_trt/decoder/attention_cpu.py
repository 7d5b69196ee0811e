"""Joins a cut decoder graph with OpenVINO's paged attention operator.

The operator (`PagedAttentionExtension`) is the one that OpenVINO GenAI's continuous batching uses. It writes the step's
keys and values into the cache blocks of each sequence and attends causally over the past and the step, packed over all
sequences. It is outside OpenVINO's stability promise, so the project pins OpenVINO exactly and its tests compare the
operator with torch.

Per step: past_lens [B] tokens already cached of each sequence; subsequence_begins [B + 1] where each sequence's tokens
begin in T; block_indices the cache blocks of all sequences one after another; block_indices_begins [B + 1] where each
sequence's blocks begin in it; max_context_len the longest past + new. The caches are [blocks, kv_heads, 32, head_dim].
"""

from __future__ import annotations

import numpy as np
import openvino as ov
from openvino import opset15 as ops
from openvino._pyopenvino.op import _PagedAttentionExtension

from nvlm_trt.decoder.engine_config import DecoderEngineConfig
from nvlm_trt.errors import EngineError

PAGING_INPUTS = ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins")
"""The int32 vectors that describe the KV cache of a step."""


def splice_attention(cut: ov.Model, config: DecoderEngineConfig) -> ov.Model:
    """The runnable decoder: the inputs of `graph_cpu` plus key_cache.i and value_cache.i for every layer.

    Raises:
        EngineError: the model lacks the cut of a layer.
    """
    paging = [int_vector(name) for name in PAGING_INPUTS]
    longest = named(ops.parameter(ov.PartialShape([]), np.int32), "max_context_len")
    parameters = {node.get_friendly_name(): node for node in cut.get_parameters()}
    results = {node.get_friendly_name(): node for node in cut.get_results()}
    caches = []
    for index in range(config.num_layers):
        name = f"layers.{index}"
        try:
            hole = parameters.pop(f"{name}.attention")
            sources = [results.pop(f"{name}.{part}").input_value(0) for part in ("query", "key", "value")]
        except KeyError as missing:
            raise EngineError("the decoder graph lacks a cut", seen=f"no {missing}", fix="build it again") from None
        pair = [_cache(f"key_cache.{index}"), _cache(f"value_cache.{index}")]
        attention = _paged_attention(config, sources, pair, paging, longest)
        attention.set_friendly_name(f"{name}.attention")
        hole.output(0).replace(attention.output(0))
        caches.extend(pair)
    return ov.Model(list(results.values()), [*parameters.values(), *paging, longest, *caches], "decoder")


def int_vector(name: str) -> ov.op.Parameter:
    """An int32 input of any length."""
    return named(ops.parameter(ov.PartialShape([-1]), np.int32), name)


def named(node: ov.op.Parameter, name: str) -> ov.op.Parameter:
    """The parameter, found under this name by people and by the infer request."""
    node.set_friendly_name(name)
    node.output(0).get_tensor().set_names({name})
    return node


def _paged_attention(
    config: DecoderEngineConfig,
    sources: list[ov.Output],
    caches: list[ov.op.Parameter],
    paging: list[ov.op.Parameter],
    longest: ov.op.Parameter,
) -> ov.Node:
    none_i32, none_f32 = _nothing(np.int32), _nothing(np.float32)
    zero = ops.constant(np.int32(0)).output(0)
    inputs = [
        *sources,
        *(cache.output(0) for cache in caches),
        *(vector.output(0) for vector in paging),
        ops.constant(np.float32(config.head_dim**-0.5)).output(0),
        zero,  # sliding window: none, the intended model is fully causal
        none_f32,  # ALiBi slopes
        longest.output(0),
        none_i32,  # score aggregation window; a scalar here breaks batches of two and more
        none_i32,  # cache rotation: blocks
        none_i32,  # cache rotation: deltas
        none_f32,  # cache rotation: table
        none_f32,  # sparse attention: threshold
        zero,  # sparse attention: block size
        zero,  # sparse attention: stride
        none_f32,  # attention sinks
        zero,  # cache eviction: start
        none_i32,  # cache eviction: sizes
        none_i32,  # cache eviction: block sets
        none_i32,  # cache eviction: where the sets begin
        none_i32,  # token types: none, every token is causal
        _nothing(np.uint8),  # bias among the step's tokens
        none_i32,  # where that bias begins
    ]
    node = _PagedAttentionExtension(inputs)
    info = node.get_rt_info()
    for part in ("k", "v"):
        info[f"num_{part}_heads"] = config.num_kv_heads
        info[f"{part}_head_size"] = config.head_dim
    return node


def _cache(name: str) -> ov.op.Parameter:
    """A cache whose type and shape the plugin settles when it compiles."""
    return named(ov.op.Parameter(ov.Type.dynamic, ov.PartialShape.dynamic(4)), name)


def _nothing(dtype: type[np.generic]) -> ov.Output:
    return ops.constant(np.zeros(0, dtype)).output(0)

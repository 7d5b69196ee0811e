"""Qwen2 with a prompt table as an OpenVINO graph of our own.

Every step packs the tokens of all sequences into one axis T, as TensorRT-LLM does in flight: a decoding sequence brings
one token, a prefilling one a chunk of its prompt. Inputs (int32 unless said otherwise):

    input_ids [T]           ids below vocab_size are tokens; vocab_size + r means row r of prompt_table of this step
    position_ids [T]        position of each token in its own sequence
    prompt_table [R, H]     float32, R >= 1: the rows that this step needs (one row of zeros when it needs none)
    logit_rows [S]          which of the T positions go through the output matrix
    past_lens [B], subsequence_begins [B + 1], block_indices [n], block_indices_begins [B + 1], max_context_len []
                            the paged KV cache (see `attention_cpu`)
Output: logits [S, vocab_size] float32.

The saved file is cut at every attention: the paged attention operator cannot be read back from an IR file (OpenVINO
2026.4), so for layer i the file has the results ``layers.i.query|key|value`` and the parameter ``layers.i.attention``,
and `attention_cpu.splice_attention` joins them when the engine loads. The file holds standard operators only.

RoPE is plain (base rope_theta, half-split rotation; facts: rope_scaling changes nothing up to 32,768 tokens). RMSNorm,
biases on q, k, v and SwiGLU follow transformers' Qwen2.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import openvino as ov
import torch
from openvino import opset15 as ops

from nvlm_trt.decoder.attention_cpu import int_vector, named
from nvlm_trt.decoder.engine_config import BF16_COMPUTE
from nvlm_trt.decoder.graph_constants import STORAGE, bf16_constant, float_constant, matrix_constant
from nvlm_trt.decoder.trtllm_checkpoint import LayerWeights, TrtllmCheckpoint
from nvlm_trt.model.config import DecoderConfig


@dataclass(frozen=True, slots=True)
class _Rope:
    """Cosines and sines of this step's positions, [T, 1, 1, head_dim]."""

    cos: ov.Output
    sin: ov.Output


@dataclass(frozen=True, slots=True)
class _Kept:
    """How matrices are kept.

    Attributes:
        stored: A member of a Storage.
        half: Whether the engine computes in bf16. Products with bf16 matrices are bf16 in the graph then: of a matrix
            that is widened first OpenVINO holds a float32 copy too, three times the memory in all.
    """

    stored: str
    half: bool


def build_graph(
    checkpoint: TrtllmCheckpoint,
    *,
    precision: str,
    max_seq_len: int,
    exclude: Collection[int] = (),
    on_layer: Callable[[int], None] | None = None,
) -> ov.Model:
    """The decoder, cut at every attention.

    Args:
        checkpoint: The TensorRT-LLM checkpoint; its ranks are joined one tensor at a time.
        precision: A key of STORAGE, which says how each matrix is kept.
        max_seq_len: Positions of the RoPE tables.
        exclude: Layers whose matrices stay bf16.
        on_layer: Called with the number of layers done, after each.

    Raises:
        BuildError: a weight is not finite.
        CheckpointError: a rank file cannot be read.
    """
    config, storage, half = checkpoint.decoder, STORAGE[precision], precision in BF16_COMPUTE
    ids, positions, logit_rows = int_vector("input_ids"), int_vector("position_ids"), int_vector("logit_rows")
    table = _float_rows("prompt_table", config.hidden_size)
    rope = _rope(config, max_seq_len, positions.output(0))
    hidden = _embed(checkpoint.embedding(), storage.embedding, ids.output(0), table.output(0))
    parameters, results = [ids, positions, table, logit_rows], []
    for index in range(config.num_layers):
        kept = _Kept("bf16" if index in exclude else storage.layers, half)
        attention, cuts, hidden = _layer(config, index, checkpoint.layer(index), kept, rope, hidden)
        parameters.append(attention)
        results.extend(cuts)
        if on_layer is not None:
            on_layer(index + 1)
    last = ops.gather(hidden, logit_rows.output(0), ops.constant(np.int32(0))).output(0)
    normed = _rms_norm(last, checkpoint.final_norm(), config.rms_norm_eps, "final_norm")
    logits = _matmul(normed, checkpoint.lm_head(), _Kept(storage.output, half), "lm_head")
    model = ov.Model([_result(logits, "logits"), *results], parameters, "decoder")
    _name_the_rest(model)
    return model


def rope_tables(head_dim: int, theta: float, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [positions, head_dim] in float32, computed as transformers' Qwen2 computes them."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), 1.0 / theta**exponents)
    both = torch.cat((angles, angles), dim=-1)
    return both.cos(), both.sin()


def _embed(embedding: torch.Tensor, precision: str, ids: ov.Output, table: ov.Output) -> ov.Output:
    matrix = matrix_constant(embedding, "embedding.weight", precision)
    axis, zero = ops.constant(np.int32(0)), ops.constant(np.int32(0))
    first_visual = ops.constant(np.int32(embedding.shape[0]))
    visual = ops.greater_equal(ids, first_visual)
    token_rows = ops.gather(matrix, ops.select(visual, zero, ids), axis)
    table_rows = ops.gather(table, ops.maximum(ops.subtract(ids, first_visual), zero), axis)
    chosen = ops.select(ops.unsqueeze(visual, ops.constant(np.int32(1))), table_rows, token_rows)
    chosen.set_friendly_name("embedded")
    return chosen.output(0)


def _rope(config: DecoderConfig, positions: int, position_ids: ov.Output) -> _Rope:
    axis = ops.constant(np.int32(0))
    cos, sin = rope_tables(config.head_dim, config.rope_theta, positions)
    shape = (positions, 1, 1, config.head_dim)
    return _Rope(
        cos=ops.gather(float_constant(cos.reshape(shape), "rope.cos"), position_ids, axis).output(0),
        sin=ops.gather(float_constant(sin.reshape(shape), "rope.sin"), position_ids, axis).output(0),
    )


def _layer(
    config: DecoderConfig, index: int, layer: LayerWeights, kept: _Kept, rope: _Rope, hidden: ov.Output
) -> tuple[ov.op.Parameter, list[ov.op.Result], ov.Output]:
    """One layer; returns the parameter that stands for its attention, the results that feed it, and the layer's end."""
    name, eps = f"layers.{index}", config.rms_norm_eps
    normed = _rms_norm(hidden, layer.input_norm, eps, f"{name}.input_norm")
    query, key, value = _qkv(config, layer, kept, normed, f"{name}.qkv")
    attention = _float_rows(f"{name}.attention", config.query_width)
    cuts = [
        _result(_rotate(query, config.num_heads, config.head_dim, rope), f"{name}.query"),
        _result(_rotate(key, config.num_kv_heads, config.head_dim, rope), f"{name}.key"),
        _result(value, f"{name}.value"),
    ]
    projected = _matmul(attention.output(0), layer.o_weight, kept, f"{name}.output")
    hidden = ops.add(hidden, projected).output(0)
    normed = _rms_norm(hidden, layer.post_norm, eps, f"{name}.post_norm")
    gate = _matmul(normed, layer.gate_weight, kept, f"{name}.gate", swish=True)
    up = _matmul(normed, layer.up_weight, kept, f"{name}.up")
    wide = ops.multiply(gate, up).output(0)
    down = _matmul(wide, layer.down_weight, kept, f"{name}.down")
    return attention, cuts, ops.add(hidden, down).output(0)


def _qkv(
    config: DecoderConfig, layer: LayerWeights, kept: _Kept, normed: ov.Output, name: str
) -> tuple[ov.Output, ov.Output, ov.Output]:
    """Queries, keys and values from one product: one pass over the input, one matrix to start."""
    weight = torch.cat((layer.q_weight, layer.k_weight, layer.v_weight))
    bias = torch.cat((layer.q_bias, layer.k_bias, layer.v_bias)).reshape(1, -1)
    packed = ops.add(_matmul(normed, weight, kept, name), float_constant(bias, f"{name}.bias"))
    widths = np.array([config.query_width, config.kv_width, config.kv_width], np.int32)
    split = ops.variadic_split(packed, ops.constant(np.int32(1)), ops.constant(widths))
    return split.output(0), split.output(1), split.output(2)


def _rotate(packed: ov.Output, heads: int, head_dim: int, rope: _Rope) -> ov.Output:
    """Rotate [T, heads * head_dim] by the positions: x * cos + (-x2, x1) * sin.

    Four dimensions, and the last one counted from the end, are what OpenVINO knows as RoPE and runs as one operator.
    """
    by_head = ops.reshape(packed, ops.constant(np.array([-1, heads, 1, head_dim], np.int32)), special_zero=False)
    halves = ops.variadic_split(
        by_head, ops.constant(np.int32(3)), ops.constant(np.array([head_dim // 2, head_dim // 2], np.int32))
    )
    minus = ops.multiply(halves.output(1), ops.constant(np.full((1, 1, 1, 1), -1, np.float32)))
    turned = ops.concat([minus.output(0), halves.output(0)], axis=-1)
    rotated = ops.add(ops.multiply(by_head, rope.cos), ops.multiply(turned, rope.sin))
    flat = ops.constant(np.array([-1, heads * head_dim], np.int32))
    return ops.reshape(rotated, flat, special_zero=False).output(0)


def _rms_norm(hidden: ov.Output, weight: torch.Tensor, eps: float, name: str) -> ov.Output:
    squares = ops.power(hidden, ops.constant(np.full((1, 1), 2, np.float32)))
    mean = ops.reduce_mean(squares, ops.constant(np.array([-1], np.int32)), keep_dims=True)
    root = ops.sqrt(ops.add(mean, ops.constant(np.full((1, 1), eps, np.float32))))
    scaled = ops.multiply(hidden, ops.divide(ops.constant(np.full((1, 1), 1, np.float32)), root))
    normed = ops.multiply(float_constant(weight.reshape(1, -1), f"{name}.weight"), scaled)
    normed.set_friendly_name(name)
    return normed.output(0)


def _matmul(source: ov.Output, weight: torch.Tensor, kept: _Kept, name: str, *, swish: bool = False) -> ov.Output:
    """A product, float32 whatever it is computed in; with `swish` that is applied to it.

    OpenVINO makes one operator of product and swish only where nothing stands between them.
    """
    if kept.stored == "bf16" and kept.half:
        matrix = bf16_constant(weight, f"{name}.weight")
        product = ops.matmul(ops.convert(source, ov.Type.bf16), matrix, transpose_a=False, transpose_b=True)
        one = ov.op.Constant(ov.Type.bf16, ov.Shape([]), [1.0])
        wide = ops.convert(ops.swish(product, one) if swish else product, np.float32)
        wide.set_friendly_name(name)
        return wide.output(0)
    matrix = matrix_constant(weight, f"{name}.weight", kept.stored)
    node = ops.matmul(source, matrix, transpose_a=False, transpose_b=True)
    node.set_friendly_name(name)
    return ops.swish(node).output(0) if swish else node.output(0)


def _float_rows(name: str, width: int) -> ov.op.Parameter:
    return named(ops.parameter(ov.PartialShape([-1, width]), np.float32), name)


def _result(source: ov.Output, name: str) -> ov.op.Result:
    node = ops.result(source, name=name)
    node.output(0).get_tensor().set_names({name})
    return node


def _name_the_rest(model: ov.Model) -> None:
    """Give every node without a name of ours one by its place: automatic names count up through the process."""
    for place, node in enumerate(model.get_ordered_ops()):
        if node.get_friendly_name() == node.get_name():
            node.set_friendly_name(f"{node.get_type_name()}.{place}")

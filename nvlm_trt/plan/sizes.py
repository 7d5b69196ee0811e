"""Bytes of what lies on a GPU, counted from shapes and from the layout of the TensorRT-LLM checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from nvlm_trt.decoder.precision import Precision, QuantAlgo
from nvlm_trt.decoder.trtllm_layout import Parameter, Rank, rank_parameters, stage_layers
from nvlm_trt.model.config import DecoderConfig, NvlmConfig
from nvlm_trt.model.tensors import projector_tensors, vision_tensors

LINEAR = ("attention.qkv.", "attention.dense.", "mlp.fc.", "mlp.proj.", "mlp.gate.")
"""Parts of the names of what belongs to a linear layer of the decoder; its bias aside, precisions are about these."""

WEIGHT_ONLY_BITS = {QuantAlgo.INT8_WEIGHTS: 8, QuantAlgo.INT4_WEIGHTS: 4}
"""Bits of a weight that trtllm-build quantises itself: the checkpoint holds it as it was."""

VISION_BYTES = {"fp32": (4, 4), "bf16": (2, 2), "fp8": (1, 2), "int8": (1, 2)}
"""Bytes of a number in the vision engine: of the matrices of its linear layers, and of all else."""

LOGIT_BYTES = 4
"""Logits are float32 (`logits_dtype` of the TensorRT-LLM checkpoint)."""


@dataclass(frozen=True, slots=True)
class RankWeights:
    """Bytes that one rank's engine holds.

    Attributes:
        embedding: The table of which a step reads a row a token; whole on every rank of the first stage.
        linear: The matrices of the layers, with their scales.
        head: lm_head, in the model's dtype.
        other: Norms, biases and the KV cache's scales.
    """

    embedding: int
    linear: int
    head: int
    other: int

    @property
    def read_per_step(self) -> int:
        """What a decode step reads, whatever its batch: all but the embedding."""
        return self.linear + self.head + self.other

    @property
    def total(self) -> int:
        """All of it."""
        return self.embedding + self.read_per_step


@cache
def rank_weights(decoder: DecoderConfig, rank: Rank, precision: Precision) -> RankWeights:
    """Bytes of one rank's weights on the GPU.

    They are the rank file's own, but for 8- and 4-bit weights without calibration, which the file holds in the model's
    dtype: trtllm-build makes codes of them and one scale an output (tensorrt_llm/quantization, `per_channel_scale`).

    Raises:
        RecipeError: the shapes do not allow this tp and pp at this precision.
    """
    embedding = linear = head = other = 0
    for parameter in rank_parameters(decoder, rank, precision):
        name, size = parameter.name, parameter.spec.nbytes
        if name.startswith("transformer.vocab_embedding."):
            embedding += size
        elif name.startswith("lm_head."):
            head += size
        elif any(part in name for part in LINEAR) and not name.endswith(".bias"):
            linear += _loaded_bytes(parameter, precision)
        else:
            other += size
    return RankWeights(embedding, linear, head, other)


def _loaded_bytes(parameter: Parameter, precision: Precision) -> int:
    bits = WEIGHT_ONLY_BITS.get(precision.quantization.quant_algo) if precision.quantization.quant_algo else None
    if bits is None:
        return parameter.spec.nbytes
    outputs, inputs = parameter.shape
    return outputs * inputs * bits // 8 + outputs * precision.dtype.torch.itemsize


def vision_engine_bytes(config: NvlmConfig, precision: str) -> int:
    """Bytes of the weights of encoder and projector in a vision engine.

    A quantised one holds the matrices of the blocks and of the projector in a byte a number; patches, positions, norms
    and biases stay bf16, scales (some kB) are not counted.

    Args:
        config: The model.
        precision: `vision_precision` of a recipe.
    """
    matrix, rest = VISION_BYTES[precision]
    shapes = {**vision_tensors(config, 0), **projector_tensors(config)}
    return sum(math.prod(shape) * (matrix if len(shape) == 2 else rest) for shape in shapes.values())


def kv_bytes_per_token(decoder: DecoderConfig, rank: Rank, precision: Precision) -> int:
    """Bytes that one token takes in the KV cache of one rank: keys and values of its layers and heads.

    ``2 x layers of the stage x max(kv heads / tp, 1) x head width x bytes``: a head is repeated where there are more
    ranks than heads. A quantised cache has a byte a number.
    """
    layers = len(stage_layers(decoder.num_layers, rank.pp, rank.stage))
    heads = max(decoder.num_kv_heads // rank.tp, 1)
    quantised = precision.quantization.kv_cache_quant_algo is not None
    return 2 * layers * heads * decoder.head_dim * (1 if quantised else precision.dtype.torch.itemsize)


def prompt_table_bytes(decoder: DecoderConfig, precision: Precision, rows: int) -> int:
    """Bytes of so many rows of a prompt table: ``rows x hidden x bytes``, in the model's dtype."""
    return rows * decoder.hidden_size * precision.dtype.torch.itemsize


def tile_tensor_bytes(config: NvlmConfig, tiles: int) -> int:
    """Bytes of a tensor of tiles, uint8 as the vision engine takes them."""
    return tiles * config.tile_size**2 * 3


def decoder_activation_bytes(decoder: DecoderConfig, rank: Rank, precision: Precision, tokens: int, batch: int) -> int:
    """An estimate of what the decoder's engine keeps besides weights: the widest moment of one layer, and the logits.

    ``tokens x bytes x (2h + max(2a + 2k, 3m)) + 4 batch x vocabulary``: residual and normed input, then either q, k, v
    and the mixed values or the three wide vectors of the MLP, each of the rank's width. TensorRT reuses the memory from
    layer to layer; scratch of the kernels belongs to the reserve.

    Args:
        decoder: The decoder, its MLP as wide as it is stored.
        rank: Which rank.
        precision: Activations are counted in the model's dtype, quantised copies are smaller.
        tokens: `max_num_tokens`, of one step over all requests.
        batch: Requests at a time.
    """
    queries = decoder.query_width // rank.tp
    keys = max(decoder.num_kv_heads // rank.tp, 1) * decoder.head_dim
    widest = max(2 * queries + 2 * keys, 3 * decoder.intermediate_size // rank.tp)
    step = tokens * precision.dtype.torch.itemsize * (2 * decoder.hidden_size + widest)
    return step + (batch * decoder.vocab_size * LOGIT_BYTES if rank.is_last_stage else 0)


def vision_activation_bytes(config: NvlmConfig, precision: str, tiles: int) -> int:
    """An estimate of what the vision engine keeps besides weights: its widest moment, for a whole batch of tiles.

    ``tiles x bytes x max(n (2h + max(4h, 2m)), t (p + 2w + o))``: in a block residual and normed input, then q, k, v
    and the mixed values or the two wide vectors of the MLP, for n tokens; in the projector its input, two wide vectors
    and its output, for t tokens. Fused attention keeps no scores.
    """
    vision = config.vision
    tokens = vision.patches_per_side**2 + 1
    block = tokens * (2 * vision.hidden_size + max(4 * vision.hidden_size, 2 * vision.intermediate_size))
    width = config.projector_in + 2 * config.projector_hidden + config.decoder.hidden_size
    _, item = VISION_BYTES[precision]
    return tiles * item * max(block, config.tokens_per_tile * width)

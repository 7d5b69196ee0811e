"""Precisions of the decoder in a TensorRT-LLM checkpoint: what each stores for a linear layer, and what it demands.

The tensors are those that TensorRT-LLM 1.x reads (tensorrt_llm/quantization/layers.py, models/modeling_utils.py) and
that NVIDIA's Model Optimizer writes (modelopt/torch/export/quant_utils.py). Only qkv, dense, fc, gate and proj are
quantised; norms, biases, the embedding and lm_head stay in the model's dtype.

W8A16 and W4A16 are stored as plain values: trtllm-build quantises them itself, in the layout of the GPU that it runs
on. All others are quantised here, with scales from a calibration.

FP8 is per tensor. Row-wise FP8 would break the build (Qwen's decoder layer passes `mrope_params`, which
Fp8RowwiseAttention does not take), and block-wise FP8 has no layer in the TensorRT engine flow: neither is here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from nvlm_trt.errors import RecipeError
from nvlm_trt.model.safetensors_stream import torch_dtype
from nvlm_trt.model.tensors import Shape

if TYPE_CHECKING:  # a recipe is read where nothing is computed
    from torch import dtype as TorchDtype  # noqa: N812 - a type

    from nvlm_trt.model.config import DecoderConfig
    from nvlm_trt.recipe import BuildRecipe


class QuantAlgo(StrEnum):
    """How linear layers are stored and run: the values of `quant_algo` in config.json that are known here."""

    FP8 = "FP8"
    SMOOTH_QUANT = "W8A8_SQ_PER_CHANNEL"
    INT8_WEIGHTS = "W8A16"
    INT4_WEIGHTS = "W4A16"
    AWQ = "W4A16_AWQ"


class KvCacheAlgo(StrEnum):
    """How keys and values are kept: the values of `kv_cache_quant_algo` in config.json that are known here."""

    FP8 = "FP8"
    INT8 = "INT8"


GROUP_SIZES = (64, 128)
"""Input channels that may share a scale in AWQ."""

DEFAULT_GROUP_SIZE = 128
"""TensorRT-LLM's own choice where config.json has none (models/modeling_utils.py)."""

KERNEL_COLUMNS = 64
"""The mixed-precision kernels take inputs and outputs in multiples of this on every rank (quantization/layers.py)."""

WEIGHT = "weight"
ACTIVATION_SCALE = "activation_scaling_factor"
WEIGHT_SCALE = "weights_scaling_factor"
PREQUANT = "prequant_scaling_factor"
KV_CACHE_SCALE = "kv_cache_scaling_factor"


@dataclass(frozen=True, slots=True)
class StoredDtype:
    """A dtype that values are stored in: its TensorRT-LLM name and its safetensors name."""

    name: str
    safetensors: str

    @property
    def torch(self) -> TorchDtype:
        """Its torch dtype."""
        return torch_dtype(self.safetensors)


STORED_DTYPES: Mapping[str, StoredDtype] = {
    dtype.name: dtype
    for dtype in (
        StoredDtype("bfloat16", "BF16"),
        StoredDtype("float16", "F16"),
        StoredDtype("float32", "F32"),
    )
}


@dataclass(frozen=True, slots=True)
class Quantization:
    """The `quantization` object of config.json.

    Attributes:
        quant_algo: How linear layers are stored and run; None for plain values.
        kv_cache_quant_algo: How keys and values are kept; None for the model's dtype.
        group_size: Input channels that share a scale; of AWQ only.
    """

    quant_algo: QuantAlgo | None = None
    kv_cache_quant_algo: KvCacheAlgo | None = None
    group_size: int | None = None

    def to_dict(self) -> dict[str, object]:
        """The JSON object: an unknown key in it is an error to TensorRT-LLM, so only those that the algorithm needs."""
        keys: dict[str, object] = {
            "quant_algo": self.quant_algo,
            "kv_cache_quant_algo": self.kv_cache_quant_algo,
        }
        if self.quant_algo == QuantAlgo.AWQ:
            keys |= {"group_size": self.group_size, "has_zero_point": False, "pre_quant_scale": True}
        return keys


UNQUANTIZED = Quantization()


@dataclass(frozen=True, slots=True)
class LinearTensor:
    """One tensor of a linear layer on one rank: the end of its name, its safetensors dtype and its shape."""

    suffix: str
    dtype: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class Precision:
    """How the values of a checkpoint are stored.

    Attributes:
        dtype: Of every value that is not quantised.
        quantization: How the others are.
    """

    dtype: StoredDtype
    quantization: Quantization = UNQUANTIZED

    @property
    def quantizes_weights(self) -> bool:
        """Whether the stored weights are codes with scales; plain values otherwise."""
        return self.quantization.quant_algo in (QuantAlgo.FP8, QuantAlgo.SMOOTH_QUANT, QuantAlgo.AWQ)

    @property
    def needs_calibration(self) -> bool:
        """Whether the conversion takes scales from a calibration."""
        return self.quantizes_weights or self.quantization.kv_cache_quant_algo is not None

    @property
    def multiple(self) -> int:
        """What inputs and outputs of every linear layer of a rank must be multiples of; 1 if anything goes."""
        match self.quantization.quant_algo:
            case QuantAlgo.INT8_WEIGHTS | QuantAlgo.INT4_WEIGHTS:
                return KERNEL_COLUMNS
            case QuantAlgo.AWQ:
                return max(KERNEL_COLUMNS, self.group_size)
            case _:
                return 1

    @property
    def group_size(self) -> int:
        """Input channels that share a scale in AWQ."""
        assert self.quantization.group_size is not None
        return self.quantization.group_size

    def padded_intermediate(self, intermediate_size: int, tp: int) -> int:
        """The MLP's width as it is stored.

        It is rounded up where the kernels demand a multiple, with zero rows in fc and gate and zero columns in proj:
        the same function, as silu(0) * 0 = 0. NVLM-D's 29,568 becomes 29,696 for W8A16 and W4A16 at tp 4 and 8.
        """
        if self.multiple == 1:
            return intermediate_size
        step = self.multiple * tp
        return -(-intermediate_size // step) * step

    def padded(self, decoder: DecoderConfig, tp: int) -> DecoderConfig:
        """The decoder's shapes as they are stored."""
        wide = self.padded_intermediate(decoder.intermediate_size, tp)
        return dataclasses.replace(decoder, intermediate_size=wide)

    def linear_tensors(self, outputs: int, inputs: int) -> tuple[LinearTensor, ...]:
        """What is stored of one linear layer of a rank, its bias aside.

        Args:
            outputs: Rows of its weight.
            inputs: Columns of its weight.
        """
        stored = self.dtype.safetensors
        match self.quantization.quant_algo:
            case QuantAlgo.FP8:
                return (
                    LinearTensor(WEIGHT, "F8_E4M3", (outputs, inputs)),
                    LinearTensor(ACTIVATION_SCALE, "F32", (1,)),
                    LinearTensor(WEIGHT_SCALE, "F32", (1,)),
                )
            case QuantAlgo.SMOOTH_QUANT:
                return (
                    LinearTensor(WEIGHT, "I8", (outputs, inputs)),
                    LinearTensor(ACTIVATION_SCALE, "F32", (1,)),
                    LinearTensor(WEIGHT_SCALE, "F32", (outputs,)),
                    LinearTensor(PREQUANT, stored, (inputs,)),
                )
            case QuantAlgo.AWQ:
                return (
                    LinearTensor(WEIGHT, "I8", (outputs // 2, inputs)),
                    LinearTensor(WEIGHT_SCALE, stored, (outputs, inputs // self.group_size)),
                    LinearTensor(PREQUANT, stored, (inputs,)),
                )
            case _:
                return (LinearTensor(WEIGHT, stored, (outputs, inputs)),)


FP32 = Precision(STORED_DTYPES["float32"])
BF16 = Precision(STORED_DTYPES["bfloat16"])

PRECISIONS: Mapping[str, Precision] = {
    "bf16": BF16,
    "fp16": Precision(STORED_DTYPES["float16"]),
    "fp8": Precision(BF16.dtype, Quantization(QuantAlgo.FP8, KvCacheAlgo.FP8)),
    "int8_sq": Precision(BF16.dtype, Quantization(QuantAlgo.SMOOTH_QUANT)),
    "int8_wo": Precision(BF16.dtype, Quantization(QuantAlgo.INT8_WEIGHTS)),
    "int4_wo": Precision(BF16.dtype, Quantization(QuantAlgo.INT4_WEIGHTS)),
    "int4_awq": Precision(BF16.dtype, Quantization(QuantAlgo.AWQ, group_size=DEFAULT_GROUP_SIZE)),
}
"""Decoder precisions of the gpu target, each with the KV cache that `kv_cache_precision: auto` gives it."""

KV_CACHES: Mapping[str, KvCacheAlgo | None] = {"model": None, "fp8": KvCacheAlgo.FP8, "int8": KvCacheAlgo.INT8}


def decoder_precision(name: str, *, kv_cache: str = "auto", group_size: int = DEFAULT_GROUP_SIZE) -> Precision:
    """The precision that a recipe of the gpu target asks for.

    Args:
        name: `decoder_precision`, a key of PRECISIONS.
        kv_cache: `decoder_engine.kv_cache_precision`: "auto", "model", "fp8" or "int8".
        group_size: `decoder_engine.awq_group_size`; int4_awq alone looks at it.

    Raises:
        RecipeError: there is no such precision, KV cache or group size.
    """
    if name not in PRECISIONS:
        raise RecipeError("the gpu target has no such decoder precision", seen=name, expected=" | ".join(PRECISIONS))
    precision = PRECISIONS[name]
    quantization = precision.quantization
    if kv_cache != "auto":
        if kv_cache not in KV_CACHES:
            raise RecipeError("there is no such KV cache", seen=kv_cache, expected=" | ".join(("auto", *KV_CACHES)))
        quantization = dataclasses.replace(quantization, kv_cache_quant_algo=KV_CACHES[kv_cache])
    if quantization.quant_algo == QuantAlgo.AWQ:
        if group_size not in GROUP_SIZES:
            raise RecipeError("AWQ has no such group size", seen=group_size, expected=" | ".join(map(str, GROUP_SIZES)))
        quantization = dataclasses.replace(quantization, group_size=group_size)
    return dataclasses.replace(precision, quantization=quantization)


def precision_of(recipe: BuildRecipe, name: str | None = None) -> Precision:
    """How the decoder's checkpoint is stored for a recipe of the gpu target.

    Args:
        recipe: The recipe.
        name: Takes the place of its `decoder_precision`.

    Raises:
        RecipeError: the decoder precision is not one of the gpu target.
    """
    engine = recipe.decoder_engine
    return decoder_precision(
        name or recipe.decoder_precision, kv_cache=engine.kv_cache_precision, group_size=engine.awq_group_size
    )

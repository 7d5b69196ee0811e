"""The ONNX graph of NVLM-D's vision side: InternViT, class token dropped, pixel shuffle v2, projector.

Written node by node after the released code (modeling_intern_vit.py, modeling_nvlm_d.py), not traced, so that the graph
is the same for every engine and a person can follow it. Standard operators of opset 20 only.

Layout. Outside attention, activations are matrices [num_tiles * tokens, width] and every linear layer is
``Gemm(x, W, transB=1)``: the weight stays [out, in] as in the checkpoint. So export streams it row by row, and the
engines get the layout that their kernels want: OpenVINO and TensorRT read Gemm as a matrix product with a transposed
operand. (MatMul would want [in, out]: a transposed copy of 1.5 GB for the largest weight, or a Transpose node that each
engine folds by holding the weight twice.)

Patches. A convolution whose stride is its kernel is a matrix product of flattened patches; tiles are cut by one Reshape
and one Transpose straight from NHWC, to (channel, row, column), the order of the checkpoint's kernel.

Precision. In the bf16 graph every tensor is bf16 except these FP32 islands: the normalisation of the pixels (the
released code casts after it), the variance of RMSNorm (released), the multiplication of q by head_dim^-0.5 (torch
multiplies a bf16 tensor by a Python float in FP32; a bf16 constant would be off by up to 0.2%), and LayerNorm (torch
computes it in FP32 and rounds once). Softmax takes and gives bf16, as released: torch and the engines sum it in FP32
inside, and Casts around it keep OpenVINO from fusing attention. q is scaled before the product with k, which TensorRT's
fused attention demands. Biases are added by nodes of their own: the released code rounds twice.

Quantisation. Where it is asked for, the input of every linear layer passes QuantizeLinear and DequantizeLinear, and its
weight is stored in codes that a DequantizeLinear reads: the explicit form, from which TensorRT makes 8-bit kernels. The
patch embedding, the products of attention, norms and softmax stay as they are (so does NVIDIA's FP8 ViT recipe,
Model-Optimizer pull request 2083).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto, helper

import nvlm_trt
from nvlm_trt.model.config import NvlmConfig
from nvlm_trt.model.reference.vision import IMAGE_MEAN, IMAGE_STD, PROJECTOR_NORM_EPS
from nvlm_trt.model.tensors import PROJECTOR_PREFIX, VISION_PREFIX, vision_layer
from nvlm_trt.vision.builder import GraphBuilder, Weight, WeightSource
from nvlm_trt.vision.dtypes import FP32, DType
from nvlm_trt.vision.scales import VisionScales

INPUT_NAME = "tiles"
OUTPUT_NAME = "prompt_table"
DATA_FILE = "vision.onnx.data"

PIXEL_MAX = 255.0


@dataclass(frozen=True, slots=True)
class VisionGraph:
    """The model without its weights, and the plan of the external file that holds them."""

    model: ModelProto
    weights: tuple[Weight, ...]
    data_bytes: int


def build_vision_graph(
    config: NvlmConfig,
    *,
    dummy_heads: int,
    precision: DType,
    output: DType,
    quantization: VisionScales | None = None,
) -> VisionGraph:
    """Write the graph: `tiles` uint8 [num_tiles, s, s, 3] RGB to `prompt_table` [num_tiles, tokens_per_tile, hidden].

    Args:
        config: The model's configuration.
        dummy_heads: Zero heads in the checkpoint's attention tensors; their rows and columns are left out.
        precision: FP32 or BF16: the type of weights and activations.
        output: The type of the prompt table.
        quantization: How linear layers are quantised, and the scales of their inputs; None leaves them alone.

    Raises:
        EngineError: the scale of a linear layer's input is missing.
    """
    return _Writer(config, dummy_heads, GraphBuilder(precision, DATA_FILE), quantization).write(output)


class _Writer:
    """Writes the parts in the order of the forward pass. Names of values say what they are: `vision/layer_07/...`."""

    def __init__(
        self, config: NvlmConfig, dummy_heads: int, builder: GraphBuilder, scales: VisionScales | None
    ) -> None:
        self._config = config
        self._vision = config.vision
        self._dummy_heads = dummy_heads
        self._builder = builder
        self._scales = scales
        self._tokens = self._vision.patches_per_side**2 + 1

    def write(self, output: DType) -> VisionGraph:
        builder, config = self._builder, self._config
        value = self._embed(self._cut_patches(self._normalise()))
        for index in range(self._vision.num_layers):
            value = self._block(value, index)
        value = self._project(self._shuffle_pixels(value))
        table_shape = [config.tokens_per_tile, config.decoder.hidden_size]
        shape = self._shape("prompt_table", [-1, *table_shape])
        if output is builder.dtype:
            builder.op(OUTPUT_NAME, "Reshape", value, shape)
        else:
            value = builder.op("projector/prompt_table", "Reshape", value, shape)
            builder.op(OUTPUT_NAME, "Cast", value, attributes={"to": output.onnx})
        side = config.tile_size
        model = builder.model(
            "nvlm_vision",
            [helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, ["num_tiles", side, side, 3])],
            [helper.make_tensor_value_info(OUTPUT_NAME, output.onnx, ["num_tiles", *table_shape])],
            doc="NVLM-D vision encoder and projector: RGB tiles to rows of the decoder's prompt table.",
            version=nvlm_trt.__version__,
        )
        return VisionGraph(model, tuple(builder.weights), builder.data_bytes)

    def _normalise(self) -> str:
        """(x / 255 - mean) / std per channel, in FP32, operation by operation as torchvision does it."""
        builder = self._builder
        value = builder.op("vision/pixels", "Cast", INPUT_NAME, attributes={"to": FP32.onnx})
        peak = builder.constant("vision/pixels/peak", PIXEL_MAX, np.float32)
        mean = builder.constant("vision/pixels/mean", IMAGE_MEAN, np.float32)
        std = builder.constant("vision/pixels/std", IMAGE_STD, np.float32)
        value = builder.op("vision/pixels/unit", "Div", value, peak)
        value = builder.op("vision/pixels/centred", "Sub", value, mean)
        value = builder.op("vision/pixels/normalised", "Div", value, std)
        return builder.narrow(value)

    def _cut_patches(self, pixels: str) -> str:
        """[n, s, s, 3] to [n * patches, 3 * p * p], patches in reading order, each as (channel, row, column)."""
        builder, side, patch = self._builder, self._vision.patches_per_side, self._vision.patch_size
        shape = self._shape("patches", [-1, side, patch, side, patch, 3])
        value = builder.op("vision/patches/grid", "Reshape", pixels, shape)
        value = builder.op("vision/patches/ordered", "Transpose", value, attributes={"perm": [0, 1, 3, 5, 2, 4]})
        return builder.op("vision/patches/rows", "Reshape", value, self._shape("patch_rows", [-1, 3 * patch * patch]))

    def _embed(self, patches: str) -> str:
        """Project the patches, put the class token in front of every tile, add the position embedding."""
        builder, hidden, name = self._builder, self._vision.hidden_size, "vision/embeddings"
        source = f"{VISION_PREFIX}embeddings."
        width = 3 * self._vision.patch_size**2
        kernel = builder.weight(
            f"{name}/patch/weight",
            WeightSource(f"{source}patch_embedding.weight", ((0, hidden),), width),
            (hidden, width),
        )
        bias = self._vector(f"{name}/patch/bias", f"{source}patch_embedding.bias", hidden)
        value = builder.op(f"{name}/patch/matmul", "Gemm", patches, kernel, bias, attributes={"transB": 1})
        value = builder.op(
            f"{name}/patch", "Reshape", value, self._shape("patch_tokens", [-1, self._tokens - 1, hidden])
        )
        token = builder.weight(
            f"{name}/class/weight", WeightSource(f"{source}class_embedding", ((0, 1),), hidden), (1, 1, hidden)
        )
        count = builder.op(f"{name}/num_tiles", "Shape", value, attributes={"start": 0, "end": 1})
        one_token = self._shape("one_token", [1, hidden])
        shape = builder.op(f"{name}/class/shape", "Concat", count, one_token, attributes={"axis": 0})
        token = builder.op(f"{name}/class", "Expand", token, shape)
        value = builder.op(f"{name}/tokens", "Concat", token, value, attributes={"axis": 1})
        positions = builder.weight(
            f"{name}/position/weight",
            WeightSource(f"{source}position_embedding", ((0, 1),), self._tokens * hidden),
            (1, self._tokens, hidden),
        )
        value = builder.op(f"{name}/positioned", "Add", value, positions)
        return builder.op(f"{name}/rows", "Reshape", value, self._shape("rows", [-1, hidden]))

    def _block(self, value: str, index: int) -> str:
        """Write h + attention(norm1(h)) * ls1, then h + mlp(norm2(h)) * ls2."""
        name, source = f"vision/layer_{index:02d}", vision_layer(index)
        normed = self._rms_norm(f"{name}/norm1", value, f"{source}norm1.weight")
        value = self._add_scaled(f"{name}/attention", value, self._attention(name, normed, source), f"{source}ls1")
        normed = self._rms_norm(f"{name}/norm2", value, f"{source}norm2.weight")
        return self._add_scaled(f"{name}/mlp", value, self._mlp(f"{name}/mlp", normed, source), f"{source}ls2")

    def _rms_norm(self, name: str, value: str, source: str) -> str:
        """Write x / sqrt(mean(x^2) + eps) in FP32, rounded, then times the weight.

        For q and k the mean runs over all real heads at once: the released code divides the sum over them by the hidden
        size, whatever the number of dummy heads.
        """
        builder = self._builder
        wide = builder.widen(value)
        square = builder.op(f"{name}/square", "Pow", wide, builder.constant("constants/two", 2.0, np.float32))
        axis = builder.constant("constants/last_axis", [-1], np.int64)
        mean = builder.op(f"{name}/mean", "ReduceMean", square, axis, attributes={"keepdims": 1})
        eps = builder.constant("constants/rms_norm_eps", self._vision.layer_norm_eps, np.float32)
        root = builder.op(f"{name}/root", "Sqrt", builder.op(f"{name}/variance", "Add", mean, eps))
        normed = builder.narrow(builder.op(f"{name}/normed", "Div", wide, root))
        weight = self._vector(f"{name}/weight", source, self._vision.hidden_size)
        return builder.op(name, "Mul", normed, weight)

    def _attention(self, name: str, value: str, source: str) -> str:
        """Self-attention of the tokens of one tile over the real heads; returns rows before the layer scale."""
        builder, vision = self._builder, self._vision
        hidden, width = vision.hidden_size, vision.hidden_size + self._dummy_heads * vision.head_dim
        name = f"{name}/attention"
        rows = tuple((part * width, part * width + hidden) for part in range(3))
        qkv = WeightSource(f"{source}attn.qkv.weight", rows, hidden)
        packed = self._product(f"{name}/qkv", value, qkv, (3 * hidden, hidden))
        query, key, content = builder.split(f"{name}/qkv", packed, ("q", "k", "v"), axis=1)
        query = builder.widen(self._rms_norm(f"{name}/q_norm", query, f"{source}attn.q_norm.weight"))
        scale = builder.constant("constants/q_scale", vision.head_dim**-0.5, np.float32)
        query = builder.narrow(builder.op(f"{name}/q_scaled", "Mul", query, scale))
        key = self._rms_norm(f"{name}/k_norm", key, f"{source}attn.k_norm.weight")
        query = self._heads(f"{name}/q_heads", query, [0, 2, 1, 3])
        key = self._heads(f"{name}/k_heads", key, [0, 2, 3, 1])
        content = self._heads(f"{name}/v_heads", content, [0, 2, 1, 3])
        scores = builder.op(f"{name}/scores", "MatMul", query, key)
        weights = builder.op(f"{name}/softmax", "Softmax", scores, attributes={"axis": -1})
        mixed = builder.op(f"{name}/context", "MatMul", weights, content)
        mixed = builder.op(f"{name}/context/joined", "Transpose", mixed, attributes={"perm": [0, 2, 1, 3]})
        mixed = builder.op(f"{name}/context/rows", "Reshape", mixed, self._shape("rows", [-1, hidden]))
        return self._linear(f"{name}/proj", mixed, f"{source}attn.proj", hidden, hidden)

    def _heads(self, name: str, value: str, order: list[int]) -> str:
        """Rows [n * tokens, hidden] to [n, heads, tokens, head_dim], or with the last two exchanged for k."""
        shape = self._shape("heads", [-1, self._tokens, self._vision.num_heads, self._vision.head_dim])
        split = self._builder.op(f"{name}/split", "Reshape", value, shape)
        return self._builder.op(name, "Transpose", split, attributes={"perm": order})

    def _mlp(self, name: str, value: str, source: str) -> str:
        hidden, wide = self._vision.hidden_size, self._vision.intermediate_size
        value = self._linear(f"{name}/fc1", value, f"{source}mlp.fc1", wide, hidden)
        value = self._builder.op(f"{name}/gelu", "Gelu", value, attributes={"approximate": "none"})
        return self._linear(f"{name}/fc2", value, f"{source}mlp.fc2", hidden, wide)

    def _linear(self, name: str, value: str, source: str, rows: int, columns: int) -> str:
        """Write value @ weight^T, rounded, plus bias, rounded."""
        weight = WeightSource(f"{source}.weight", ((0, rows),), columns)
        product = self._product(name, value, weight, (rows, columns))
        return self._builder.op(name, "Add", product, self._vector(f"{name}/bias", f"{source}.bias", rows))

    def _product(self, name: str, value: str, source: WeightSource, shape: tuple[int, int]) -> str:
        """Write value @ weight^T, both quantised if the linear layers are."""
        builder, scales = self._builder, self._scales
        if scales is None:
            weight = builder.weight(f"{name}/weight", source, shape)
        else:
            scale = scales.input_scale(name, builder.dtype)
            value = builder.quantized_value(f"{name}/input", value, scale, scales.quantization)
            weight = builder.quantized_weight(f"{name}/weight", source, shape, scales.weights)
        return builder.op(f"{name}/matmul", "Gemm", value, weight, attributes={"transB": 1})

    def _add_scaled(self, name: str, value: str, change: str, source: str) -> str:
        scale = self._vector(f"{name}/layer_scale/weight", source, self._vision.hidden_size)
        scaled = self._builder.op(f"{name}/layer_scale", "Mul", change, scale)
        return self._builder.op(f"{name}/residual", "Add", value, scaled)

    def _shuffle_pixels(self, rows: str) -> str:
        """Drop the class token and fold every square of patches into one token (v2), in (row, column, value) order.

        y[t, a, b, (p * shuffle + q) * hidden + c] = x[t, shuffle * a + p, shuffle * b + q, c]; tokens in reading order.
        """
        builder, config, hidden = self._builder, self._config, self._vision.hidden_size
        fold, side, name = config.shuffle, self._vision.patches_per_side // config.shuffle, "vision/shuffle"
        value = builder.op(f"{name}/tokens", "Reshape", rows, self._shape("tokens", [-1, self._tokens, hidden]))
        bounds = [builder.constant(f"constants/{key}", [number], np.int64) for key, number in self._patch_slice()]
        value = builder.op(f"{name}/without_class", "Slice", value, *bounds)
        value = builder.op(
            f"{name}/squares", "Reshape", value, self._shape("squares", [-1, side, fold, side, fold, hidden])
        )
        value = builder.op(f"{name}/gathered", "Transpose", value, attributes={"perm": [0, 1, 3, 2, 4, 5]})
        return builder.op(f"{name}/rows", "Reshape", value, self._shape("shuffled_rows", [-1, config.projector_in]))

    def _patch_slice(self) -> list[tuple[str, int]]:
        return [("patches_start", 1), ("patches_stop", self._tokens), ("token_axis", 1)]

    def _project(self, value: str) -> str:
        """LayerNorm, Linear, erf GELU, Linear; neither Linear has a bias."""
        builder, config = self._builder, self._config
        width, wide, out = config.projector_in, config.projector_hidden, config.decoder.hidden_size
        value = builder.widen(value)
        scale, shift = (
            self._vector(f"projector/norm/{part}", f"{PROJECTOR_PREFIX}0.{part}", width, dtype=FP32)
            for part in ("weight", "bias")
        )
        value = builder.op(
            "projector/norm",
            "LayerNormalization",
            value,
            scale,
            shift,
            attributes={"axis": -1, "epsilon": PROJECTOR_NORM_EPS},
        )
        value = builder.narrow(value)
        source = WeightSource(f"{PROJECTOR_PREFIX}1.weight", ((0, wide),), width)
        value = self._product("projector/fc1", value, source, (wide, width))
        value = builder.op("projector/gelu", "Gelu", value, attributes={"approximate": "none"})
        source = WeightSource(f"{PROJECTOR_PREFIX}3.weight", ((0, out),), wide)
        return self._product("projector/fc2", value, source, (out, wide))

    def _vector(self, name: str, source: str, width: int, *, dtype: DType | None = None) -> str:
        return self._builder.weight(name, WeightSource(source, ((0, width),), 1), (width,), dtype=dtype)

    def _shape(self, name: str, shape: list[int]) -> str:
        return self._builder.constant(f"constants/shape/{name}", shape, np.int64)

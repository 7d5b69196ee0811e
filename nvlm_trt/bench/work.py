"""Operations and bytes that a model needs, by the formulas of nvlm_trt/plan, for the precision of one subject.

Operations are those of the model, dummy heads left out, whoever computes them anyway: so engines compare. Bytes of a
decode step are those of the matrices and of the KV cache; norms, biases and scales (less than a thousandth at the
released widths) are not counted.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from nvlm_trt.decoder.precision import STORED_DTYPES, Precision, decoder_precision
from nvlm_trt.decoder.trtllm_layout import Rank
from nvlm_trt.model.config import NvlmConfig
from nvlm_trt.plan.flops import layer_elements, prefill_flops, vision_flops_per_tile
from nvlm_trt.plan.sizes import kv_bytes_per_token, rank_weights
from nvlm_trt.recipe import BuildRecipe

Arithmetic = Literal["fp32", "bf16", "int8"]

CPU_BYTES = {"fp32": 4, "bf16": 2, "int8_wo": 1}
"""Bytes of a weight that the cpu engine multiplies with (nvlm_trt/decoder/build_cpu.py, which needs OpenVINO)."""

CPU_ARITHMETIC: dict[str, Arithmetic] = {"fp32": "fp32", "bf16": "bf16", "int8_wo": "fp32"}
"""int8_wo multiplies in float32 on the cpu target."""

GPU_ARITHMETIC: dict[str, Arithmetic] = {
    "bf16": "bf16",
    "int8": "int8",
    "int8_sq": "int8",
    "int8_wo": "bf16",
    "int4_wo": "bf16",
    "int4_awq": "bf16",
}
"""Of the gpu target; fp8 and fp16 have no measured ceiling."""

STORED_NAMES = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Work:
    """What a subject has to do.

    Attributes:
        config: The model's shapes.
        vision_arithmetic: What the vision encoder multiplies in; None where no ceiling is measured for it.
        decoder_arithmetic: What the decoder multiplies in.
        step_bytes: Bytes of weights that a decode step reads.
        token_bytes: Bytes of a token in the KV cache, all of which a step reads.
        gpus: Over which prefill's operations are spread; 1 on the cpu target.
    """

    config: NvlmConfig
    vision_arithmetic: Arithmetic | None
    decoder_arithmetic: Arithmetic | None
    step_bytes: int
    token_bytes: int
    gpus: int = 1

    def vision_flops(self, tiles: int) -> float:
        """Operations of encoder and projector."""
        return float(tiles * vision_flops_per_tile(self.config))

    def prefill_flops(self, tokens: int) -> float:
        """Operations of reading a prompt, on each GPU."""
        return prefill_flops(self.config.decoder, tokens) / self.gpus

    def decode_bytes(self, context: int) -> int:
        """Bytes that the decode step of one request reads, which sees `context` tokens."""
        return self.step_bytes + context * self.token_bytes


def engine_work(config: NvlmConfig, recipe: BuildRecipe) -> Work:
    """The work of the engines of a recipe; on the gpu target that of one GPU."""
    if recipe.target == "gpu":
        return _gpu_work(config, recipe)
    kept = "bf16" if recipe.decoder_precision == "bf16" else "fp32"
    return _cpu_work(config, recipe.vision_precision, recipe.decoder_precision, kept)


def reference_work(config: NvlmConfig, dtype: Literal["fp32", "bf16"]) -> Work:
    """The work of the torch reference in one dtype throughout."""
    return _cpu_work(config, dtype, dtype, dtype)


def _cpu_work(config: NvlmConfig, vision: str, decoder: str, kept: str) -> Work:
    """The work of one process.

    Args:
        config: The model's shapes.
        vision: Precision of the vision encoder.
        decoder: Precision of the decoder's matrices, the output matrix included.
        kept: In which the KV cache is kept.
    """
    shapes = config.decoder
    elements = shapes.num_layers * layer_elements(shapes) + shapes.vocab_size * shapes.hidden_size
    cache = Precision(STORED_DTYPES[STORED_NAMES[kept]])
    return Work(
        config,
        CPU_ARITHMETIC[vision],
        CPU_ARITHMETIC[decoder],
        elements * CPU_BYTES[decoder],
        kv_bytes_per_token(shapes, Rank(1, 1, 0), cache),
    )


def _gpu_work(config: NvlmConfig, recipe: BuildRecipe) -> Work:
    """Of the first rank of each stage: the stages follow one another."""
    engine = recipe.decoder_engine
    precision = decoder_precision(
        recipe.decoder_precision, kv_cache=engine.kv_cache_precision, group_size=engine.awq_group_size
    )
    wide = precision.padded_intermediate(config.decoder.intermediate_size, recipe.tp)
    decoder = dataclasses.replace(config.decoder, intermediate_size=wide)
    ranks = [Rank(recipe.tp, recipe.pp, stage * recipe.tp) for stage in range(recipe.pp)]
    return Work(
        config,
        GPU_ARITHMETIC.get(recipe.vision_precision),
        GPU_ARITHMETIC.get(recipe.decoder_precision),
        sum(rank_weights(decoder, rank, precision).read_per_step for rank in ranks),
        sum(kv_bytes_per_token(decoder, rank, precision) for rank in ranks),
        recipe.tp,
    )

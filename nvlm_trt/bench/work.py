"""Operations and bytes that a model needs, by the formulas of nvlm_trt/plan, for the precision of one subject.

Operations are those of the model, dummy heads left out, whoever computes them anyway: so engines compare. Bytes of a
decode step are those of the matrices and of the KV cache; norms, biases and scales of rows (less than a thousandth at
the released widths) are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nvlm_trt.decoder.precision import BF16, FP32, Precision, precision_of
from nvlm_trt.decoder.trtllm_layout import Rank
from nvlm_trt.model.config import NvlmConfig
from nvlm_trt.plan.flops import layer_elements, prefill_flops, vision_flops_per_tile
from nvlm_trt.plan.sizes import kv_bytes_per_token, rank_weights
from nvlm_trt.recipe import BuildRecipe

Arithmetic = Literal["fp32", "bf16", "int8"]

CPU_ARITHMETIC: dict[str, Arithmetic] = {
    "fp32": "fp32",
    "bf16": "bf16",
    "int8": "int8",
    "int8_wo": "fp32",
    "int4_wo": "fp32",
}
"""Of the cpu target: weights of few bits are widened to float32 for the product (nvlm_trt/decoder/session_cpu.py)."""

GPU_ARITHMETIC: dict[str, Arithmetic] = {
    "bf16": "bf16",
    "int8": "int8",
    "int8_sq": "int8",
    "int8_wo": "bf16",
    "int4_wo": "bf16",
    "int4_awq": "bf16",
}
"""Of the gpu target; fp8 and fp16 have no measured ceiling."""

REFERENCE_DTYPES = {"fp32": FP32.dtype, "bf16": BF16.dtype}


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
    return _gpu_work(config, recipe) if recipe.target == "gpu" else _cpu_work(config, recipe)


def reference_work(config: NvlmConfig, dtype: Literal["fp32", "bf16"]) -> Work:
    """The work of the torch reference in one dtype throughout."""
    decoder, stored = config.decoder, REFERENCE_DTYPES[dtype]
    elements = decoder.num_layers * layer_elements(decoder) + decoder.vocab_size * decoder.hidden_size
    cache = kv_bytes_per_token(decoder, Rank(1, 1, 0), Precision(stored))
    return Work(config, dtype, dtype, elements * stored.torch.itemsize, cache)


def peer_work(config: NvlmConfig, precision: Literal["bf16", "int8"]) -> Work:
    """The work of an engine of others; in int8 weights and cache have half the bytes, and its products no ceiling."""
    whole = reference_work(config, "bf16")
    if precision == "bf16":
        return whole
    return Work(config, None, None, whole.step_bytes // 2, whole.token_bytes // 2)


def _cpu_work(config: NvlmConfig, recipe: BuildRecipe) -> Work:
    """All weights of the engine but the embedding, of which a step reads a row; it is float32 or bf16.

    Keys and values are kept in what is computed in (nvlm_trt/decoder/session_cpu.py).
    """
    from nvlm_trt.decoder.build_cpu import engine_bytes  # it brings OpenVINO
    from nvlm_trt.decoder.engine_config import BF16_COMPUTE

    decoder, precision = config.decoder, recipe.decoder_precision
    embedding = decoder.vocab_size * decoder.hidden_size * (4 if precision == "fp32" else 2)
    kept = REFERENCE_DTYPES["bf16" if precision in BF16_COMPUTE else "fp32"]
    return Work(
        config,
        CPU_ARITHMETIC.get(recipe.vision_precision),
        CPU_ARITHMETIC.get(precision),
        engine_bytes(decoder, precision, recipe.exclude_layers) - embedding,
        kv_bytes_per_token(decoder, Rank(1, 1, 0), Precision(kept)),
    )


def _gpu_work(config: NvlmConfig, recipe: BuildRecipe) -> Work:
    """Of the first rank of each stage: the stages follow one another."""
    precision = precision_of(recipe)
    decoder = precision.padded(config.decoder, recipe.tp)
    ranks = [Rank(recipe.tp, recipe.pp, stage * recipe.tp) for stage in range(recipe.pp)]
    return Work(
        config,
        GPU_ARITHMETIC.get(recipe.vision_precision),
        GPU_ARITHMETIC.get(recipe.decoder_precision),
        sum(rank_weights(decoder, rank, precision).read_per_step for rank in ranks),
        sum(kv_bytes_per_token(decoder, rank, precision) for rank in ranks),
        recipe.tp,
    )

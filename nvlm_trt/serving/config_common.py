"""Configurations of the models that are the same on both targets."""

from __future__ import annotations

from typing import Final

from nvlm_trt.serving.config_parts import (
    TABLE,
    ModelConfig,
    Step,
    add_steps,
    field_input,
    python_model,
    tensor_input,
    tensor_output,
)
from nvlm_trt.serving.decoder_tensors import CACHED_TOKENS, DECODER_FROM_PREPROCESSING, LOG_PROBS, OUTPUTS, Tensor
from nvlm_trt.serving.fields import ANSWER_FIELDS, NVLM_FIELDS, REQUEST_FIELDS
from nvlm_trt.serving.preprocessing import NUM_TILES, TILES
from nvlm_trt.serving.spec import ServingSpec

MULTIMODAL_DECODER: Final = "multimodal_decoder"

PREPROCESSING_INSTANCES: Final = 2
"""Processes that decode images: a large photograph must not hold up a text-only request."""

PREPARED: Final = {name: f"_{name}" for name, _, _ in DECODER_FROM_PREPROCESSING}
"""The decoder's inputs by the names that they have in an ensemble; preprocessing also gives ``_tiles``."""

DECODED: Final = {name: f"_{name}" for name, _, _ in OUTPUTS}
"""The decoder's outputs by the names that they have in an ensemble."""


def nvlm(spec: ServingSpec) -> ModelConfig:
    """The model to call: a decoupled Python orchestrator."""
    config = python_model("nvlm", spec, decoupled=True)
    config.input.extend(field_input(field) for field in NVLM_FIELDS)
    config.output.extend(tensor_output(field.name, field.dtype, (-1 if field.many else 1,)) for field in ANSWER_FIELDS)
    config.output.extend(tensor_output(*tensor) for tensor in _cached_tokens(spec))
    return config


def ensemble() -> ModelConfig:
    """Triton's own ensemble over the composing models, for clients that expect one; exact for unary calls."""
    config = ModelConfig(name="ensemble", platform="ensemble", max_batch_size=0)
    config.input.extend(field_input(field) for field in REQUEST_FIELDS)
    config.output.append(tensor_output("text_output", "BYTES", (-1, 1)))
    config.output.append(tensor_output("num_output_tokens", "INT32", (-1, 1)))
    request = {field.name: field.name for field in REQUEST_FIELDS}
    texts = {"text_output": "text_output", "num_output_tokens": "num_output_tokens"}
    first: Step = ("preprocessing", request, {**PREPARED, TILES: f"_{TILES}"})
    middle: Step = (MULTIMODAL_DECODER, {**PREPARED, TILES: f"_{TILES}"}, DECODED)
    last: Step = ("postprocessing", DECODED, texts)
    add_steps(config, (first, middle, last))
    return config


def multimodal_decoder(spec: ServingSpec, vision: str) -> ModelConfig:
    """Tiles and the decoder's inputs to tokens: the way of `nvlm` to the decoder for requests with images.

    Args:
        spec: Shapes and limits.
        vision: The model that makes the prompt table of a request's tiles; the table passes inside the server.
    """
    config = ModelConfig(name=MULTIMODAL_DECODER, platform="ensemble", max_batch_size=0)
    side = spec.tile_size
    config.input.append(tensor_input(TILES, "UINT8", (-1, side, side, 3)))
    config.input.extend(tensor_input(name, dtype, (1, *dims)) for name, dtype, dims in DECODER_FROM_PREPROCESSING)
    outputs = (*OUTPUTS, *LOG_PROBS, *_cached_tokens(spec))
    config.output.extend(tensor_output(name, dtype, (-1, *dims)) for name, dtype, dims in outputs)
    inputs = {name: name for name, _, _ in DECODER_FROM_PREPROCESSING}
    answer = {name: name for name, _, _ in outputs}
    add_steps(
        config,
        (
            (vision, {TILES: TILES}, {TABLE: f"_{TABLE}"}),
            ("tensorrt_llm", {**inputs, TABLE: f"_{TABLE}"}, answer),
        ),
    )
    return config


def preprocessing(spec: ServingSpec) -> ModelConfig:
    """Fields to tiles, ids and sampling values; its outputs carry the decoder's batch dimension of 1 themselves."""
    config = python_model("preprocessing", spec, instances=PREPROCESSING_INSTANCES)
    config.input.extend(field_input(field) for field in REQUEST_FIELDS)
    side = spec.tile_size
    config.output.append(tensor_output(TILES, "UINT8", (-1, side, side, 3)))
    config.output.append(tensor_output(NUM_TILES, "INT32", (1,)))
    config.output.extend(tensor_output(name, dtype, (1, *dims)) for name, dtype, dims in DECODER_FROM_PREPROCESSING)
    return config


def postprocessing(spec: ServingSpec) -> ModelConfig:
    """Ids to text, for the ensemble; it sees the decoder's outputs only."""
    config = python_model("postprocessing", spec)
    config.max_batch_size = spec.max_batch_size
    config.input.extend(tensor_input(*tensor) for tensor in OUTPUTS)
    config.output.append(tensor_output("text_output", "BYTES", (1,)))
    config.output.append(tensor_output("num_output_tokens", "INT32", (1,)))
    return config


def selftest(spec: ServingSpec) -> ModelConfig:
    """An echo of three types: proves before readiness that tensors cross the Python backend unharmed."""
    config = python_model("selftest", spec)
    for dtype in ("UINT8", "BYTES", "FP32"):
        config.input.append(tensor_input(f"{dtype.lower()}_in", dtype, (-1,)))
        config.output.append(tensor_output(f"{dtype.lower()}_out", dtype, (-1,)))
    return config


def _cached_tokens(spec: ServingSpec) -> tuple[Tensor, ...]:
    """The output with the prompt's cached tokens, where the decoder tells them."""
    return () if spec.cpu is None else (CACHED_TOKENS,)

"""Configurations of the engines' models on the cpu target: Python models over OpenVINO."""

from __future__ import annotations

from nvlm_trt.serving.config_common import DECODED, PREPARED, ensemble, nvlm, postprocessing, preprocessing, selftest
from nvlm_trt.serving.config_parts import FEATURES, TABLE, ModelConfig, python_model, tensor_input, tensor_output
from nvlm_trt.serving.decoder_tensors import (
    DECODER_FROM_PREPROCESSING,
    DECODER_OTHER,
    DECODER_REQUIRED,
    OUTPUTS,
    SWITCHES,
)
from nvlm_trt.serving.preprocessing import TILES
from nvlm_trt.serving.spec import ServingSpec

VISION_QUEUE_MICROSECONDS = 2_000
"""How long tiles wait for tiles of other requests; a tile takes longer than this."""


def cpu_models(spec: ServingSpec) -> tuple[ModelConfig, ...]:
    """Every model of the cpu target's repository."""
    return (
        nvlm(spec),
        ensemble(
            (
                ("vision_encoder", {TILES: f"_{TILES}"}, {FEATURES: f"_{FEATURES}"}),
                ("prompt_table", {FEATURES: f"_{FEATURES}"}, {TABLE: f"_{TABLE}"}),
                ("tensorrt_llm", {**PREPARED, TABLE: f"_{TABLE}"}, DECODED),
            )
        ),
        preprocessing(spec),
        vision_encoder(spec),
        prompt_table(spec),
        tensorrt_llm(spec),
        postprocessing(spec),
        selftest(spec),
    )


def vision_encoder(spec: ServingSpec) -> ModelConfig:
    """Tiles to rows of the prompt table. The tile count is the batch, so tiles of several requests run together."""
    config = python_model("vision_encoder", spec)
    config.max_batch_size = spec.max_tiles_per_request
    config.dynamic_batching.max_queue_delay_microseconds = VISION_QUEUE_MICROSECONDS
    side = spec.tile_size
    config.input.append(tensor_input(TILES, "UINT8", (side, side, 3)))
    config.output.append(tensor_output(FEATURES, spec.table_dtype, (spec.tokens_per_tile, spec.hidden_size)))
    return config


def prompt_table(spec: ServingSpec) -> ModelConfig:
    """The step that the ensemble needs between the two engines: Triton's `reshape` cannot cross the batch."""
    config = python_model("prompt_table", spec)
    config.input.append(tensor_input(FEATURES, spec.table_dtype, (-1, spec.tokens_per_tile, spec.hidden_size)))
    config.output.append(tensor_output(TABLE, spec.table_dtype, (1, -1, spec.hidden_size)))
    return config


def tensorrt_llm(spec: ServingSpec) -> ModelConfig:
    """A Python model with the C++ backend's inputs and outputs in front of the cpu decoder."""
    config = python_model("tensorrt_llm", spec, decoupled=True)
    config.max_batch_size = spec.max_batch_size
    config.dynamic_batching.SetInParent()
    table = ((TABLE, spec.table_dtype, (-1, spec.hidden_size)),)
    for name, dtype, dims in (*DECODER_FROM_PREPROCESSING, *table, *DECODER_OTHER):
        scalar = tuple(dims) == (1,) and name not in SWITCHES
        config.input.append(tensor_input(name, dtype, dims, optional=name not in DECODER_REQUIRED, scalar=scalar))
    config.output.extend(tensor_output(*tensor) for tensor in OUTPUTS)
    return config

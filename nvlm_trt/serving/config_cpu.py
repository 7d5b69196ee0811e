"""Configurations of the engines' models on the cpu target: Python models over OpenVINO."""

from __future__ import annotations

from nvlm_trt.serving.config_common import (
    ensemble,
    multimodal_decoder,
    nvlm,
    postprocessing,
    preprocessing,
    selftest,
)
from nvlm_trt.serving.config_parts import TABLE, ModelConfig, python_model, tensor_input, tensor_output
from nvlm_trt.serving.decoder_tensors import (
    CACHED_TOKENS,
    DECODER_FROM_PREPROCESSING,
    DECODER_OTHER,
    DECODER_REQUIRED,
    LOG_PROBS,
    OUTPUTS,
    STOP,
    SWITCHES,
)
from nvlm_trt.serving.preprocessing import TILES
from nvlm_trt.serving.spec import ServingSpec


def cpu_models(spec: ServingSpec) -> tuple[ModelConfig, ...]:
    """Every model of the cpu target's repository."""
    return (
        nvlm(spec),
        ensemble(),
        preprocessing(spec),
        vision_encoder(spec),
        multimodal_decoder(spec, "vision_encoder"),
        tensorrt_llm(spec),
        postprocessing(spec),
        selftest(spec),
    )


def vision_encoder(spec: ServingSpec) -> ModelConfig:
    """Tiles of one request to its prompt table.

    There is no batching: requests are handed to the model as they come, and it takes their tiles in turn. One with
    `stop` ends those that have its id.
    """
    config = python_model("vision_encoder", spec)
    side = spec.tile_size
    config.input.append(tensor_input(TILES, "UINT8", (-1, side, side, 3)))
    config.input.append(tensor_input(STOP, "BOOL", (1,), optional=True))
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
    config.output.extend(tensor_output(*tensor) for tensor in (*OUTPUTS, *LOG_PROBS, CACHED_TOKENS))
    return config

"""config.pbtxt of every Triton model, built as the protobuf message that the server parses.

Names and dimensions of `tensorrt_llm` are those of NVIDIA's C++ backend (inflight_batcher_llm/tensorrt_llm/config.pbtxt
of TensorRT-LLM 1.x), so that what is proven on the cpu target holds on the gpu target. A configuration is never a text
template: a value that is missing or of the wrong type fails here, not in the server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from nvlm_trt.errors import EngineError
from nvlm_trt.serving.fields import ANSWER_FIELDS, NVLM_FIELDS, REQUEST_FIELDS, Field
from nvlm_trt.serving.preprocessing import NUM_TILES, REFUSAL, TILES
from nvlm_trt.serving.spec import ServingSpec

ModelConfig: TypeAlias = pb.ModelConfig
Dims = Sequence[int]

PARAMETER_SPEC: Final = "nvlm_spec"
PARAMETER_ENGINE: Final = "nvlm_engine_dir"
ENGINE_FROM_MODEL: Final = "../.."
"""The engine directory as seen from a model's directory: the repository lies inside the engine directory."""

VISION_QUEUE_MICROSECONDS = 2_000
"""How long tiles wait for tiles of other requests; on any target a tile takes longer than this."""

PREPROCESSING_INSTANCES = 2
"""Processes that decode images: a large photograph must not hold up a text-only request."""

TABLE: Final = "prompt_embedding_table"
FEATURES: Final = "prompt_table"
"""The vision graph's own output: rows by tile (`prompt_embedding_table` is the same rows as one table)."""

DECODER_FROM_PREPROCESSING: Final[tuple[tuple[str, str, Dims], ...]] = (
    ("input_ids", "INT32", (-1,)),
    ("input_lengths", "INT32", (1,)),
    ("request_output_len", "INT32", (1,)),
    ("end_id", "INT32", (1,)),
    ("pad_id", "INT32", (1,)),
    ("runtime_top_k", "INT32", (1,)),
    ("runtime_top_p", "FP32", (1,)),
    ("temperature", "FP32", (1,)),
    ("repetition_penalty", "FP32", (1,)),
    ("min_tokens", "INT32", (1,)),
    ("seed", "UINT64", (1,)),
    ("streaming", "BOOL", (1,)),
    ("prompt_table_extra_ids", "UINT64", (-1,)),
    ("prompt_vocab_size", "INT32", (1,)),
)
"""Decoder inputs that preprocessing makes: name, type, dimensions without the batch."""

DECODER_REQUIRED: Final = ("input_lengths", "request_output_len")
"""As in the C++ backend's configuration; input_ids is refused by the model itself when it is absent."""

DECODER_OTHER: Final[tuple[tuple[str, str, Dims], ...]] = (
    ("stop_words_list", "INT32", (2, -1)),
    ("bad_words_list", "INT32", (2, -1)),
    ("embedding_bias", "FP32", (-1,)),
    ("beam_width", "INT32", (1,)),
    ("len_penalty", "FP32", (1,)),
    ("presence_penalty", "FP32", (1,)),
    ("frequency_penalty", "FP32", (1,)),
    ("return_log_probs", "BOOL", (1,)),
    ("return_context_logits", "BOOL", (1,)),
    ("return_generation_logits", "BOOL", (1,)),
    ("stop", "BOOL", (1,)),
)

SCALARS: Final = frozenset(
    name for name, _, dims in (*DECODER_FROM_PREPROCESSING, *DECODER_OTHER) if tuple(dims) == (1,)
) - {"stop", "streaming"}
"""Inputs that the C++ backend's configuration reshapes to no dimension; its two switches keep theirs."""


def configs(spec: ServingSpec) -> dict[str, ModelConfig]:
    """The configuration of every model of the repository, by name."""
    makers: tuple[Callable[[ServingSpec], ModelConfig], ...] = (
        nvlm,
        ensemble,
        preprocessing,
        vision_encoder,
        prompt_table,
        tensorrt_llm,
        postprocessing,
        selftest,
    )
    made = [make(spec) for make in makers]
    return {config.name: config for config in made}


def to_pbtxt(config: ModelConfig) -> str:
    """The text of config.pbtxt, with ``max_batch_size: 0`` spelt out: absent it would be auto-completed."""
    text = str(text_format.MessageToString(config))
    return text if config.max_batch_size else f"max_batch_size: 0\n{text}"


def from_pbtxt(text: str) -> ModelConfig:
    """Parse a config.pbtxt.

    Raises:
        EngineError: it is no model configuration.
    """
    try:
        return text_format.Parse(text, ModelConfig())
    except text_format.ParseError as error:
        raise EngineError(f"a config.pbtxt cannot be parsed ({error})", fix="package the engine again") from None


def nvlm(spec: ServingSpec) -> ModelConfig:
    """The model to call: a decoupled Python orchestrator."""
    config = _python("nvlm", spec, decoupled=True)
    config.input.extend(_field_input(field) for field in NVLM_FIELDS)
    config.output.extend(_output(field.name, field.dtype, (1,)) for field in ANSWER_FIELDS)
    return config


def ensemble(spec: ServingSpec) -> ModelConfig:
    """Triton's own ensemble over the composing models, for clients that expect one; exact for unary calls."""
    config = ModelConfig(name="ensemble", platform="ensemble", max_batch_size=0)
    config.input.extend(_field_input(field) for field in REQUEST_FIELDS)
    config.output.append(_output("text_output", "BYTES", (-1, 1)))
    config.output.append(_output("num_output_tokens", "INT32", (-1, 1)))
    request = {field.name: field.name for field in REQUEST_FIELDS}
    decoder = {name: f"_{name}" for name, _, _ in DECODER_FROM_PREPROCESSING}
    answer = {"output_ids": "_output_ids", "sequence_length": "_sequence_length"}
    texts = {"text_output": "text_output", "num_output_tokens": "num_output_tokens"}
    steps: tuple[tuple[str, dict[str, str], dict[str, str]], ...] = (
        ("preprocessing", request, {**decoder, TILES: f"_{TILES}"}),
        ("vision_encoder", {TILES: f"_{TILES}"}, {FEATURES: f"_{FEATURES}"}),
        ("prompt_table", {FEATURES: f"_{FEATURES}"}, {TABLE: f"_{TABLE}"}),
        ("tensorrt_llm", {**decoder, TABLE: f"_{TABLE}"}, answer),
        ("postprocessing", answer, texts),
    )
    for model, inputs, outputs in steps:
        config.ensemble_scheduling.step.add(model_name=model, model_version=-1, input_map=inputs, output_map=outputs)
    return config


def preprocessing(spec: ServingSpec) -> ModelConfig:
    """Fields to tiles, ids and sampling values; its outputs carry the decoder's batch dimension of 1 themselves."""
    config = _python("preprocessing", spec, instances=PREPROCESSING_INSTANCES)
    config.input.extend(_field_input(field) for field in REQUEST_FIELDS)
    side = spec.tile_size
    config.output.append(_output(TILES, "UINT8", (-1, side, side, 3)))
    config.output.append(_output(NUM_TILES, "INT32", (1,)))
    config.output.append(_output(REFUSAL, "BYTES", (1,)))
    config.output.extend(_output(name, dtype, (1, *dims)) for name, dtype, dims in DECODER_FROM_PREPROCESSING)
    return config


def vision_encoder(spec: ServingSpec) -> ModelConfig:
    """Tiles to rows of the prompt table. The tile count is the batch, so tiles of several requests run together."""
    if spec.target == "cpu":
        config = _python("vision_encoder", spec)
    else:
        config = ModelConfig(name="vision_encoder", backend="tensorrt", default_model_filename="model.plan")
        config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_GPU)
    config.max_batch_size = spec.max_tiles_per_request
    config.dynamic_batching.max_queue_delay_microseconds = VISION_QUEUE_MICROSECONDS
    side = spec.tile_size
    config.input.append(_input(TILES, "UINT8", (side, side, 3)))
    config.output.append(_output(FEATURES, spec.table_dtype, (spec.tokens_per_tile, spec.hidden_size)))
    return config


def prompt_table(spec: ServingSpec) -> ModelConfig:
    """The step that the ensemble needs between the two engines: Triton's `reshape` cannot cross the batch."""
    config = _python("prompt_table", spec)
    config.input.append(_input(FEATURES, spec.table_dtype, (-1, spec.tokens_per_tile, spec.hidden_size)))
    config.output.append(_output(TABLE, spec.table_dtype, (1, -1, spec.hidden_size)))
    return config


def tensorrt_llm(spec: ServingSpec) -> ModelConfig:
    """The decoder with the C++ backend's inputs and outputs; on the cpu target a Python model stands in."""
    if spec.target == "cpu":
        config = _python("tensorrt_llm", spec, decoupled=True)
    else:
        config = ModelConfig(name="tensorrt_llm", backend="tensorrtllm")
        config.model_transaction_policy.decoupled = True
        config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)
        for key, value in _tensorrt_llm_parameters().items():
            config.parameters[key].string_value = value
    config.max_batch_size = spec.max_batch_size
    config.dynamic_batching.SetInParent()
    table = ((TABLE, spec.table_dtype, (-1, spec.hidden_size)),)
    for name, dtype, dims in (*DECODER_FROM_PREPROCESSING, *table, *DECODER_OTHER):
        config.input.append(_input(name, dtype, dims, optional=name not in DECODER_REQUIRED, scalar=name in SCALARS))
    config.output.append(_output("output_ids", "INT32", (-1, -1)))
    config.output.append(_output("sequence_length", "INT32", (-1,)))
    return config


def postprocessing(spec: ServingSpec) -> ModelConfig:
    """Ids to text, for the ensemble; it sees the decoder's outputs only."""
    config = _python("postprocessing", spec)
    config.max_batch_size = spec.max_batch_size
    config.input.append(_input("output_ids", "INT32", (-1, -1)))
    config.input.append(_input("sequence_length", "INT32", (-1,)))
    config.output.append(_output("text_output", "BYTES", (1,)))
    config.output.append(_output("num_output_tokens", "INT32", (1,)))
    return config


def selftest(spec: ServingSpec) -> ModelConfig:
    """An echo of three types: proves before readiness that tensors cross the Python backend unharmed."""
    config = _python("selftest", spec)
    for dtype in ("UINT8", "BYTES", "FP32"):
        config.input.append(_input(f"{dtype.lower()}_in", dtype, (-1,)))
        config.output.append(_output(f"{dtype.lower()}_out", dtype, (-1,)))
    return config


def spec_of(config_parameters: dict[str, dict[str, str]], model_dir: Path) -> tuple[ServingSpec, Path]:
    """What a Python model finds in its own configuration.

    Args:
        config_parameters: Member ``parameters`` of the model's configuration as JSON.
        model_dir: The model's directory.

    Returns:
        The spec, and the engine directory.

    Raises:
        EngineError: the repository is of another version.
    """
    try:
        text = config_parameters[PARAMETER_SPEC]["string_value"]
        relative = config_parameters[PARAMETER_ENGINE]["string_value"]
    except KeyError:
        raise EngineError("a model's configuration has no spec", fix="package the engine again") from None
    return ServingSpec.from_json(text), (model_dir / relative).resolve()


def _python(name: str, spec: ServingSpec, *, decoupled: bool = False, instances: int = 1) -> ModelConfig:
    config = ModelConfig(name=name, backend="python", max_batch_size=0)
    config.instance_group.add(count=instances, kind=pb.ModelInstanceGroup.KIND_CPU)
    if decoupled:
        config.model_transaction_policy.decoupled = True
    config.parameters[PARAMETER_ENGINE].string_value = ENGINE_FROM_MODEL
    config.parameters[PARAMETER_SPEC].string_value = spec.to_json()
    return config


def _tensorrt_llm_parameters() -> dict[str, str]:
    """Parameters of the C++ backend; what is not named keeps its default (cross_kv_cache_fraction must stay unset)."""
    return {
        "gpt_model_type": "inflight_fused_batching",
        "gpt_model_path": f"{ENGINE_FROM_MODEL}/decoder/engine",
        "batch_scheduler_policy": "guaranteed_no_evict",
        "enable_kv_cache_reuse": "true",
        "exclude_input_in_output": "true",
        "cancellation_check_period_ms": "100",
        "max_beam_width": "1",
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
    }


def _field_input(field: Field) -> pb.ModelInput:
    return _input(field.name, field.dtype, (-1,) if field.many else (1,), optional=True)


def _input(
    name: str, dtype: str, dims: Iterable[int], *, optional: bool = False, scalar: bool = False
) -> pb.ModelInput:
    made = pb.ModelInput(name=name, data_type=_data_type(dtype), dims=dims, optional=optional)
    if scalar:
        made.reshape.SetInParent()
    return made


def _output(name: str, dtype: str, dims: Iterable[int]) -> pb.ModelOutput:
    return pb.ModelOutput(name=name, data_type=_data_type(dtype), dims=dims)


def _data_type(dtype: str) -> int:
    return int(pb.DataType.Value(f"TYPE_{'STRING' if dtype == 'BYTES' else dtype}"))

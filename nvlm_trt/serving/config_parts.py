"""What configurations of Triton models are put together from: tensors, Python models, names that several share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias

from tritonclient.grpc import model_config_pb2 as pb

from nvlm_trt.serving.fields import Field
from nvlm_trt.serving.spec import PARAMETER_ENGINE, PARAMETER_SPEC, ServingSpec

ModelConfig: TypeAlias = pb.ModelConfig
Step: TypeAlias = tuple[str, dict[str, str], dict[str, str]]
"""A step of an ensemble: the model, its inputs and its outputs by the names that these have in the ensemble."""

ENGINE_FROM_MODEL: Final = "../.."
"""The engine directory as seen from a model's directory: the repository lies inside the engine directory."""

TABLE: Final = "prompt_embedding_table"
FEATURES: Final = "prompt_table"
"""The vision graph's own output: rows by tile (`prompt_embedding_table` is the same rows as one table)."""


def python_model(name: str, spec: ServingSpec, *, decoupled: bool = False, instances: int = 1) -> ModelConfig:
    """A Python model, which finds its spec and the engine directory in its own parameters."""
    config = ModelConfig(name=name, backend="python", max_batch_size=0)
    config.instance_group.add(count=instances, kind=pb.ModelInstanceGroup.KIND_CPU)
    if decoupled:
        config.model_transaction_policy.decoupled = True
    config.parameters[PARAMETER_ENGINE].string_value = ENGINE_FROM_MODEL
    config.parameters[PARAMETER_SPEC].string_value = spec.to_json()
    return config


def field_input(field: Field) -> pb.ModelInput:
    """A field of a request as an input; all of them may be left out."""
    return tensor_input(field.name, field.dtype, (-1,) if field.many else (1,), optional=True)


def tensor_input(
    name: str, dtype: str, dims: Iterable[int], *, optional: bool = False, scalar: bool = False, ragged: bool = False
) -> pb.ModelInput:
    """An input.

    Args:
        name: Its name.
        dtype: Triton's name of its type.
        dims: Its dimensions without the batch.
        optional: Whether a request may leave it out.
        scalar: Whether the model sees it without its dimension of 1.
        ragged: Whether requests of different shapes may share a batch.
    """
    made = pb.ModelInput(name=name, data_type=_data_type(dtype), dims=dims, optional=optional)
    if scalar:
        made.reshape.SetInParent()
    if ragged:
        made.allow_ragged_batch = True
    return made


def tensor_output(name: str, dtype: str, dims: Iterable[int]) -> pb.ModelOutput:
    """An output; dimensions without the batch."""
    return pb.ModelOutput(name=name, data_type=_data_type(dtype), dims=dims)


def add_steps(config: ModelConfig, steps: Iterable[Step]) -> None:
    """Make a configuration an ensemble of these steps."""
    for model, inputs, outputs in steps:
        config.ensemble_scheduling.step.add(model_name=model, model_version=-1, input_map=inputs, output_map=outputs)


def _data_type(dtype: str) -> int:
    return int(pb.DataType.Value(f"TYPE_{'STRING' if dtype == 'BYTES' else dtype}"))

"""config.pbtxt: valid protobuf, the names and dimensions of NVIDIA's repository, nothing left to chance."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from nvlm_trt.errors import BuildError, EngineError
from nvlm_trt.serving import package
from nvlm_trt.serving.config import (
    DECODER_FROM_PREPROCESSING,
    FEATURES,
    PARAMETER_ENGINE,
    PARAMETER_SPEC,
    configs,
    from_pbtxt,
    spec_of,
    to_pbtxt,
)
from nvlm_trt.serving.spec import ServingSpec
from nvlm_trt.vision import graph

MODELS = {
    "nvlm",
    "ensemble",
    "preprocessing",
    "vision_encoder",
    "prompt_table",
    "tensorrt_llm",
    "postprocessing",
    "selftest",
}


@pytest.fixture(params=["cpu", "gpu"])
def both(request, spec):
    """The spec for either target."""
    return dataclasses.replace(spec, target=request.param, table_dtype="FP32" if request.param == "cpu" else "BF16")


def test_every_configuration_survives_its_text(both):
    made = configs(both)
    assert set(made) == MODELS
    for config in made.values():
        text = to_pbtxt(config)
        assert from_pbtxt(text) == config
        assert "${" not in text
        assert "max_batch_size" in text


def test_the_tile_count_is_the_batch_of_the_vision_encoder(both):
    config = configs(both)["vision_encoder"]
    side = both.tile_size
    assert config.max_batch_size == both.max_tiles_per_request == 2 * 7
    assert list(config.input[0].dims) == [side, side, 3]
    assert (config.output[0].name, list(config.output[0].dims)) == (FEATURES, [16, both.hidden_size])
    assert config.backend == ("python" if both.target == "cpu" else "tensorrt")


def test_the_vision_tensors_are_named_as_in_the_graph(both):
    config = configs(both)["vision_encoder"]
    assert (config.input[0].name, config.output[0].name) == (graph.INPUT_NAME, graph.OUTPUT_NAME)


def test_the_decoder_has_the_inputs_of_the_cpp_backend(both):
    config = configs(both)["tensorrt_llm"]
    inputs = {tensor.name: tensor for tensor in config.input}
    for name in ("input_ids", "stop_words_list", "beam_width", "prompt_embedding_table", "stop", "streaming"):
        assert inputs[name].optional
    for name in ("input_lengths", "request_output_len"):
        assert not inputs[name].optional
        assert inputs[name].HasField("reshape")
    assert [tensor.name for tensor in config.output] == ["output_ids", "sequence_length"]
    assert config.model_transaction_policy.decoupled
    assert config.max_batch_size == both.max_batch_size


def test_steps_of_the_ensemble_fit_together(both):
    made = configs(both)
    known: dict[str, list[int]] = {tensor.name: list(tensor.dims) for tensor in made["ensemble"].input}
    for step in made["ensemble"].ensemble_scheduling.step:
        model = made[step.model_name]
        for name, source in step.input_map.items():
            tensor = next(tensor for tensor in model.input if tensor.name == name)
            assert fits(with_batch(model, tensor), known[source]), (step.model_name, name)
        for name, target in step.output_map.items():
            tensor = next(tensor for tensor in model.output if tensor.name == name)
            known[target] = with_batch(model, tensor)
    assert {tensor.name for tensor in made["ensemble"].output} <= set(known)


def with_batch(model, tensor) -> list[int]:
    return [-1, *tensor.dims] if model.max_batch_size else list(tensor.dims)


def fits(left: list[int], right: list[int]) -> bool:
    return len(left) == len(right) and all(a == b or -1 in (a, b) for a, b in zip(left, right, strict=True))


def test_preprocessing_makes_every_decoder_input_with_its_batch(spec):
    outputs = {tensor.name: list(tensor.dims) for tensor in configs(spec)["preprocessing"].output}
    for name, _, dims in DECODER_FROM_PREPROCESSING:
        assert outputs[name] == [1, *dims]


def test_a_damaged_configuration_is_refused():
    with pytest.raises(EngineError, match="cannot be parsed"):
        from_pbtxt('name: "x" nonsense: 3')


def test_a_model_finds_its_spec_and_engine(spec):
    parameters = {
        PARAMETER_SPEC: {"string_value": spec.to_json()},
        PARAMETER_ENGINE: {"string_value": "../.."},
    }
    assert spec_of(parameters, Path("/engines/x/triton_repo/nvlm")) == (spec, Path("/engines/x"))
    with pytest.raises(EngineError, match="no spec"):
        spec_of({}, Path("/engines/x"))


def test_a_spec_of_another_version_is_refused(spec):
    raw = json.loads(spec.to_json())
    raw["invented"] = raw.pop("tile_size")
    with pytest.raises(EngineError, match="another version"):
        ServingSpec.from_json(json.dumps(raw))


def test_packaging_is_deterministic_and_complete(engine_dir, recipe, tmp_path):
    for place in ("first", "second"):
        package.write_repository(engine_dir, tmp_path / place, recipe)
    files = {
        place: {f.relative_to(tmp_path / place): f.read_bytes() for f in (tmp_path / place).rglob("*") if f.is_file()}
        for place in ("first", "second")
    }
    assert files["first"] == files["second"]
    names = {str(name) for name in files["first"]}
    assert {f"{model}/config.pbtxt" for model in MODELS} <= names
    assert {f"{model}/1/model.py" for model in MODELS - {"ensemble"}} <= names
    assert (tmp_path / "first" / "ensemble" / "1").is_dir()


def test_the_gpu_repository_links_the_plan_and_has_no_python_decoder(engine_dir, recipe):
    gpu = recipe.model_copy(update={"target": "gpu", "decoder_precision": "bf16"})
    package.write_repository(engine_dir, engine_dir / "triton_repo", gpu)
    plan = engine_dir / "vision" / "model.plan"
    plan.parent.mkdir()
    plan.write_bytes(b"plan")
    assert (engine_dir / "triton_repo" / "vision_encoder" / "1" / "model.plan").resolve() == plan.resolve()
    assert not (engine_dir / "triton_repo" / "tensorrt_llm" / "1" / "model.py").exists()
    assert ServingSpec.of(engine_dir, gpu).table_dtype == "BF16"


def test_a_model_without_source_is_a_fault_of_the_installation():
    with pytest.raises(BuildError, match="not installed"):
        package.model_source("unknown")

"""config.pbtxt: valid protobuf, the names and dimensions of NVIDIA's repository, nothing left to chance."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from nvlm_trt.errors import BuildError, EngineError
from nvlm_trt.recipe import parse_recipe
from nvlm_trt.serving import package
from nvlm_trt.serving.config import configs, from_pbtxt, to_pbtxt
from nvlm_trt.serving.config_gpu import LOAD_ORDER
from nvlm_trt.serving.config_parts import FEATURES, TABLE
from nvlm_trt.serving.decoder_tensors import DECODER_FROM_PREPROCESSING
from nvlm_trt.serving.preprocessing import TILES
from nvlm_trt.serving.spec import PARAMETER_ENGINE, PARAMETER_SPEC, ServingSpec, spec_of
from nvlm_trt.vision import graph

COMMON = {
    "nvlm",
    "ensemble",
    "preprocessing",
    "vision_encoder",
    "multimodal_decoder",
    "tensorrt_llm",
    "postprocessing",
    "selftest",
}
MODELS = {"cpu": COMMON, "gpu": COMMON | {"tile_parallel_vision"}}


@pytest.fixture(params=["cpu", "gpu"])
def both(request, spec, gpu_spec):
    """The spec for either target."""
    return spec if request.param == "cpu" else gpu_spec


def changed(gpu_spec, **fields):
    """The spec with other values of its gpu part."""
    return dataclasses.replace(gpu_spec, gpu=dataclasses.replace(gpu_spec.gpu, **fields))


def test_every_configuration_survives_its_text(both):
    made = configs(both)
    assert set(made) == MODELS[both.target]
    for config in made.values():
        text = to_pbtxt(config)
        assert from_pbtxt(text) == config
        assert "${" not in text
        assert "max_batch_size" in text


def test_the_tile_count_of_one_gpus_part_of_a_request_is_the_batch_of_the_plan(gpu_spec):
    config = configs(gpu_spec)["vision_encoder"]
    side = gpu_spec.tile_size
    assert config.max_batch_size == 4, "two images of seven tiles over four GPUs"
    assert list(config.input[0].dims) == [side, side, 3]
    assert (config.output[0].name, list(config.output[0].dims)) == (FEATURES, [16, gpu_spec.hidden_size])
    assert config.backend == "tensorrt"


def test_the_plans_tensors_are_named_as_in_the_graph(gpu_spec):
    config = configs(gpu_spec)["vision_encoder"]
    assert (config.input[0].name, config.output[0].name) == (graph.INPUT_NAME, graph.OUTPUT_NAME)


def test_tiles_become_one_table_on_either_target(both):
    config = configs(both)["vision_encoder" if both.target == "cpu" else "tile_parallel_vision"]
    side = both.tile_size
    assert (config.backend, config.max_batch_size) == ("python", 0)
    assert (config.input[0].name, list(config.input[0].dims)) == (TILES, [-1, side, side, 3])
    assert (config.output[0].name, list(config.output[0].dims)) == (TABLE, [1, -1, both.hidden_size])


def test_the_decoder_has_the_inputs_of_the_cpp_backend(both):
    config = configs(both)["tensorrt_llm"]
    inputs = {tensor.name: tensor for tensor in config.input}
    for name in ("input_ids", "stop_words_list", "beam_width", "prompt_embedding_table", "stop", "streaming"):
        assert inputs[name].optional
    for name in ("input_lengths", "request_output_len"):
        assert not inputs[name].optional
        assert inputs[name].HasField("reshape")
    assert [tensor.name for tensor in config.output][:2] == ["output_ids", "sequence_length"]
    assert config.model_transaction_policy.decoupled
    assert config.max_batch_size == both.max_batch_size


def test_steps_of_the_ensembles_fit_together(both):
    made = configs(both)
    ensembles = [name for name, config in made.items() if config.platform == "ensemble"]
    assert sorted(ensembles) == ["ensemble", "multimodal_decoder"]
    for ensemble in ensembles:
        check_steps(made, ensemble)


def check_steps(made, ensemble):
    known: dict[str, list[int]] = {tensor.name: list(tensor.dims) for tensor in made[ensemble].input}
    for step in made[ensemble].ensemble_scheduling.step:
        model = made[step.model_name]
        for name, source in step.input_map.items():
            tensor = next(tensor for tensor in model.input if tensor.name == name)
            assert fits(with_batch(model, tensor), known[source]), (step.model_name, name)
        for name, target in step.output_map.items():
            tensor = next(tensor for tensor in model.output if tensor.name == name)
            known[target] = with_batch(model, tensor)
        if step.model_name == "tensorrt_llm":  # a table without them is refused, as blocks of its images are reused
            assert {"prompt_embedding_table", "prompt_table_extra_ids"} <= set(step.input_map)
        required = {tensor.name for tensor in model.input if not tensor.optional}
        assert required <= set(step.input_map)
    assert {tensor.name for tensor in made[ensemble].output} <= set(known)


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


def test_a_spec_survives_its_text_on_either_target(both):
    assert ServingSpec.from_json(both.to_json()) == both
    assert ("gpu" in json.loads(both.to_json())) == (both.target == "gpu")


def test_a_gpu_part_of_another_version_is_refused(gpu_spec):
    raw = json.loads(gpu_spec.to_json())
    del raw["gpu"]["vision_gpus"]
    with pytest.raises(EngineError, match="vision_gpus"):
        ServingSpec.from_json(json.dumps(raw))


def test_the_vision_encoder_has_an_instance_on_every_gpu_and_no_batcher_that_undoes_the_spreading(gpu_spec):
    config = configs(gpu_spec)["vision_encoder"]
    (group,) = config.instance_group
    assert (group.count, list(group.gpus)) == (1, [0, 1, 2, 3])
    assert not config.HasField("dynamic_batching")
    assert configs(changed(gpu_spec, vision_gpus=1))["vision_encoder"].HasField("dynamic_batching")


@pytest.mark.parametrize(
    ("fields", "gpus", "tiles"),
    [
        ({"tp": 1}, 1, 14),
        ({"tp": 8}, 8, 2),
        ({"tp": 2, "pp": 2, "vision_engine": {"max_tiles": 7}}, 4, 7),
        ({"tp": 4, "vision_engine": {"gpus": 2}}, 2, 7),
        ({"tp": 2, "vision_engine": {"gpus": 4}}, 2, 7),
        ({"tp": 8, "pp": 2}, 8, 2),
        ({"tp": 4, "pp": 2, "gpus_per_node": 4}, 4, 4),
    ],
)
def test_vision_runs_on_the_gpus_of_the_first_node(engine_dir, gpu_recipe, fields, gpus, tiles):
    recipe = parse_recipe({**gpu_recipe.model_dump(), **fields}, "recipe")
    spec = ServingSpec.of(engine_dir, recipe)
    assert (spec.gpu.vision_gpus, spec.gpu.vision_max_tiles) == (gpus, tiles)
    made = configs(spec)
    assert made["vision_encoder"].max_batch_size == tiles
    assert made["tile_parallel_vision"].instance_group[0].count == gpus


def test_decoder_knobs_of_the_recipe_reach_the_backend(engine_dir, gpu_recipe):
    knobs = {"kv_cache_fraction": 0.85, "kv_cache_reuse": False, "chunked_context": False}
    recipe = parse_recipe({**gpu_recipe.model_dump(), "decoder_engine": knobs}, "recipe")
    parameters = configs(ServingSpec.of(engine_dir, recipe))["tensorrt_llm"].parameters
    seen = {key: parameters[key].string_value for key in parameters}
    assert seen["kv_cache_free_gpu_mem_fraction"] == "0.85"
    assert seen["enable_kv_cache_reuse"] == "false"
    assert seen["enable_chunked_context"] == "false"


def test_the_backend_gets_what_it_reads_without_a_default_and_nothing_that_ends_it(gpu_spec):
    config = from_pbtxt(to_pbtxt(configs(gpu_spec)["tensorrt_llm"]))
    assert {"guided_decoding_backend", "tokenizer_dir", "xgrammar_tokenizer_info_path"} <= set(config.parameters)
    assert not {"cross_kv_cache_fraction", "gpu_device_ids", "worker_path"} & set(config.parameters)
    assert config.parameters["gpt_model_type"].string_value == "inflight_fused_batching"
    assert config.parameters["gpt_model_path"].string_value == "decoder/engine"


def test_ragged_inputs_of_the_backend_may_share_a_batch_and_scalars_lose_their_dimension(gpu_spec):
    inputs = {tensor.name: tensor for tensor in configs(gpu_spec)["tensorrt_llm"].input}
    ragged = {name for name, tensor in inputs.items() if tensor.allow_ragged_batch}
    reshaped = {name for name, tensor in inputs.items() if tensor.HasField("reshape")}
    assert {"input_ids", "prompt_embedding_table", "prompt_table_extra_ids", "lora_config"} <= ragged
    assert {"input_lengths", "seed", "stop", "streaming"} <= reshaped
    assert not ragged & reshaped
    assert not {"mrope_rotary_cos_sin", "mrope_position_deltas"} & (ragged | reshaped)


def test_loading_in_the_given_order_loads_every_model_once(gpu_spec):
    made = configs(gpu_spec)

    def with_steps(name):
        steps = [step.model_name for step in made[name].ensemble_scheduling.step]
        return [name, *(model for step in steps for model in with_steps(step))]

    loaded = [model for name in LOAD_ORDER for model in with_steps(name)]
    assert sorted(loaded) == sorted(made)
    assert loaded.index("vision_encoder") < loaded.index("tensorrt_llm")


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_packaging_is_deterministic_and_complete(engine_dir, recipe, gpu_recipe, tmp_path, target):
    for place in ("first", "second"):
        package.write_repository(engine_dir, tmp_path / place, recipe if target == "cpu" else gpu_recipe)
    files = {
        place: {f.relative_to(tmp_path / place): f.read_bytes() for f in (tmp_path / place).rglob("*") if f.is_file()}
        for place in ("first", "second")
    }
    assert files["first"] == files["second"]
    names = {str(name) for name in files["first"]}
    assert {f"{model}/config.pbtxt" for model in MODELS[target]} <= names
    engines = {"vision_encoder", "tensorrt_llm"} if target == "gpu" else set()
    python = MODELS[target] - {"ensemble", "multimodal_decoder"} - engines
    assert {name for name in names if name.endswith("model.py")} == {f"{model}/1/model.py" for model in python}
    assert all((tmp_path / "first" / model / "1").is_dir() for model in MODELS[target])


def test_the_gpu_repository_links_the_plan_from_wherever_the_engine_directory_is(engine_dir, gpu_recipe, tmp_path):
    package.write_repository(engine_dir, engine_dir / "triton_repo", gpu_recipe)
    plan = engine_dir / "vision" / "model.plan"
    plan.parent.mkdir()
    plan.write_bytes(b"plan")
    moved = engine_dir.rename(tmp_path / "moved")
    link = moved / "triton_repo" / "vision_encoder" / "1" / "model.plan"
    assert link.resolve() == moved / "vision" / "model.plan"
    assert link.read_bytes() == b"plan"


def test_the_table_has_the_type_of_the_decoder(engine_dir, gpu_recipe):
    for precision, dtype in (("bf16", "BF16"), ("fp8", "BF16"), ("int4_awq", "BF16"), ("fp16", "FP16")):
        recipe = gpu_recipe.model_copy(update={"decoder_precision": precision})
        assert ServingSpec.of(engine_dir, recipe).table_dtype == dtype


def test_a_model_without_source_is_a_fault_of_the_installation():
    with pytest.raises(BuildError, match="not installed"):
        package.model_source("unknown")

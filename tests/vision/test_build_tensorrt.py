"""The TensorRT build: what is asked of TensorRT, what comes out, and that nothing is left of what failed."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from filelock import FileLock
from onnx import helper

from nvlm_trt.errors import BuildError, EngineError, RecipeError
from nvlm_trt.recipe import parse_recipe
from nvlm_trt.vision.build_tensorrt import TensorrtVisionSettings, build_vision_tensorrt, vision_settings
from nvlm_trt.vision.description import VisionDescription
from nvlm_trt.vision.engine_tensorrt import TensorrtEngineDescription, run_black_tile
from nvlm_trt.vision.export import export_vision
from nvlm_trt.vision.scales import VisionScales, linear_names

from .fake_tensorrt import Context, Machine

SHAPE = "seven heads and no dummy"
SIDE = 56
SETTINGS = TensorrtVisionSettings(
    min_tiles=1, opt_tiles=5, max_tiles=12, workspace_bytes=3 << 30, optimization_level=4, hardware_compatibility="none"
)


@pytest.fixture(scope="module")
def export(checkpoint_of, tmp_path_factory):
    """A bf16 export with a bf16 table, as a gpu target has it. Read only."""
    out = tmp_path_factory.mktemp("export")
    export_vision(checkpoint_of(SHAPE), out, precision="bf16", output_dtype="bf16")
    return out


@pytest.fixture
def export_copy(export, tmp_path):
    """An export that a test may damage."""
    return shutil.copytree(export, tmp_path / "copy")


@pytest.fixture
def machine(monkeypatch):
    """A machine with TensorRT 10.14, and no GPU for torch."""
    made = Machine()
    monkeypatch.setitem(sys.modules, "tensorrt", made.package())
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return made


@dataclasses.dataclass
class Build:
    """Builds `source`, and keeps what was told."""

    source: Path
    out: Path
    cache: Path
    told: list = dataclasses.field(default_factory=list)
    steps: list = dataclasses.field(default_factory=list)

    def __call__(self, source=None, settings=SETTINGS, progress=None):
        self.out.mkdir(exist_ok=True)
        build_vision_tensorrt(
            (source or self.source) / "vision.onnx",
            self.out,
            settings=settings,
            timing_cache=self.cache,
            log=self.told.append,
            progress=progress or (lambda *step: self.steps.append(step)),
        )

    def names(self):
        return sorted(path.name for path in self.out.iterdir())

    def times(self):
        return json.loads(self.cache.read_bytes())["times"]


@pytest.fixture
def build(export, tmp_path):
    return Build(export, tmp_path / "engine", tmp_path / "cache" / "vision.cache")


def test_an_engine_comes_with_its_record_its_layers_and_its_log(machine, build, export):
    build()
    assert build.names() == ["build.log", "engine.json", "inspector.json", "model.plan"]
    plan = (build.out / "model.plan").read_bytes()
    record = TensorrtEngineDescription.load(build.out)
    assert record.plan_sha256 == hashlib.sha256(plan).hexdigest()
    assert record.plan_bytes == len(plan)
    assert record.tensorrt == "10.14.1.48"
    assert record.gpu is None
    assert not record.inference
    assert (record.profile.least, record.profile.opt, record.profile.most) == (1, 5, 12)
    assert record.source == VisionDescription.load(export)
    assert json.loads((build.out / "inspector.json").read_text()) == {"Layers": ["one"]}
    log = (build.out / "build.log").read_text()
    assert "[INFO] Detected 1 input" in log
    assert "[WARNING] a kernel is slow" in log
    assert "a tactic" not in log


def test_the_network_is_strongly_typed_without_tf32_and_as_the_settings_say(machine, build, export):
    build()
    assert machine.parsed == [str(export / "vision.onnx")]
    assert machine.built == {
        "flags": 0b10,
        "builder_flags": set(),
        "pools": {"WORKSPACE": 3 << 30},
        "level": 4,
        "compatibility": "NONE",
        "verbosity": "DETAILED",
        "known_times": {},
    }


@pytest.mark.parametrize("level", ["ampere_plus", "same_compute_capability"])
def test_a_compatibility_level_is_found_by_its_name_and_recorded(machine, build, level):
    build(settings=dataclasses.replace(SETTINGS, hardware_compatibility=level))
    assert machine.built["compatibility"] == level.upper()
    assert TensorrtEngineDescription.load(build.out).hardware_compatibility == level


def test_the_profile_covers_the_tiles_of_the_settings_and_nothing_else_varies(machine, build):
    build()
    plan = json.loads((build.out / "model.plan").read_bytes())
    assert plan["profiles"] == [{"tiles": [[count, SIDE, SIDE, 3] for count in (1, 5, 12)]}]


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_quantised_exports_are_built(machine, build, checkpoint_of, tmp_path, kind):
    checkpoint, out = checkpoint_of(SHAPE), tmp_path / "quantised"
    out.mkdir()
    scales = VisionScales(kind, dict.fromkeys(linear_names(checkpoint.config), 1.0))
    export_vision(checkpoint, out, precision="bf16", output_dtype="fp16", quantization=scales)
    build(out)
    source = TensorrtEngineDescription.load(build.out).source
    assert (source.precision, source.compute) == (kind, "bf16")


def test_progress_rises_from_nothing_to_all_through_nested_phases(machine, build, export):
    build()
    total = VisionDescription.load(export).data_bytes
    fractions = [done / total for done, _ in build.steps]
    assert fractions == pytest.approx([0, 1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 8, 6 / 8, 7 / 8, 1, 1], abs=2 / total)
    assert build.steps[-1] == (total, total)
    assert build.steps[-2][0] < total


def test_a_tensorrt_without_a_progress_monitor_builds_as_well(machine, build, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", machine.package(without=("IProgressMonitor",)))
    build()
    assert len(build.steps) == 2


def test_an_interruption_inside_a_callback_stops_the_build_and_is_raised(machine, build):
    def interrupt(done, total):
        if done:
            raise KeyboardInterrupt

    finished = []
    machine.during_build = lambda: finished.append(True)
    with pytest.raises(KeyboardInterrupt):
        build(progress=interrupt)
    assert not finished
    assert build.names() == ["build.log"]


def test_a_warning_is_told_once(machine, build):
    build()
    assert build.told.count("TensorRT: a kernel is slow") == 1


@pytest.mark.parametrize("version", ["10.11.0.33", "10.16.1.11", "10.14.1.48.post1"])
def test_versions_from_10_11_to_10_16_are_taken(machine, build, monkeypatch, version):
    machine.version = version
    monkeypatch.setitem(sys.modules, "tensorrt", machine.package())
    build()
    assert TensorrtEngineDescription.load(build.out).tensorrt == version


@pytest.mark.parametrize("version", ["8.6.1", "10.10.0.31", "10.17.0.1", "11.1.0.106", "dev"])
def test_other_versions_are_refused_with_the_image_to_use(machine, build, monkeypatch, version):
    machine.version = version
    monkeypatch.setitem(sys.modules, "tensorrt", machine.package())
    build.out.mkdir()
    (build.out / "model.plan").write_bytes(b"an earlier engine")
    with pytest.raises(EngineError, match=rf"seen: {version}.*10\.11 to 10\.16.*tritonserver:26\.04-trtllm"):
        build()
    assert machine.parsed == []
    assert build.names() == ["model.plan"]


def test_a_machine_without_tensorrt_is_told_which_image_has_it(build, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match=r"cannot be imported.*tritonserver"):
        build()


def test_an_operator_that_the_parser_lacks_is_refused_before_the_weights_are_read(machine, build, export_copy):
    model = onnx.load(export_copy / "vision.onnx", load_external_data=False)
    end = model.graph.output[0]
    for node in model.graph.node:
        node.output[:] = ["before_the_end" if name == end.name else name for name in node.output]
    model.graph.node.append(helper.make_node("Det", ["before_the_end"], [end.name], name="odd"))
    (export_copy / "vision.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BuildError, match="Det"):
        build(export_copy)
    assert machine.parsed == []


def test_a_graph_that_is_no_onnx_is_a_build_error(machine, build, export_copy):
    (export_copy / "vision.onnx").write_bytes(b"\x00" * 100)
    with pytest.raises(BuildError, match="cannot be read"):
        build(export_copy)


def test_every_error_of_the_parser_is_in_one_message(machine, build):
    machine.parse_errors = [
        (3, "vision/a", "Gemm", "ErrorCode.INVALID_NODE", "no weights"),
        (7, "vision/b", "Pow", "ErrorCode.UNSUPPORTED_NODE", "no such type"),
    ]
    with pytest.raises(BuildError) as caught:
        build()
    for part in ("node 3 vision/a (Gemm)", "no weights", "node 7 vision/b (Pow)", "UNSUPPORTED_NODE"):
        assert part in str(caught.value)
    assert build.names() == ["build.log"]


def test_a_build_that_gives_no_engine_tells_what_tensorrt_said(machine, build):
    machine.build_error = "Could not find any implementation for node x"
    with pytest.raises(BuildError, match="Could not find any implementation for node x"):
        build()
    assert build.names() == ["build.log"]
    assert "[ERROR] Could not find" in (build.out / "build.log").read_text()
    assert not build.cache.exists()


def _set(key, value, tensor=None):
    def change(plan):
        target = plan if tensor is None else plan["tensors"][tensor]
        target[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("name", "rows", tensor=1), "tensors"),
        (_set("dtype", "HALF", tensor=1), "type of"),
        (_set("dtype", "INT8", tensor=0), "type of tiles"),
        (_set("mode", "OUTPUT", tensor=0), "mode of tiles"),
        (_set("shape", [-1, 4, 4], tensor=1), "shape of"),
        (_set("profiles", []), "number of profiles"),
        (_set("profiles", [{"tiles": [[count, SIDE, SIDE, 3] for count in (1, 5, 6)]}]), "profile"),
    ],
)
def test_an_engine_that_is_not_the_described_one_leaves_no_plan(machine, build, change, message):
    machine.change_plan = change
    with pytest.raises(BuildError, match=f"load test: {message}"):
        build()
    assert build.names() == ["build.log"]


def test_a_plan_that_cannot_be_loaded_leaves_no_plan_and_tells_the_reason(machine, build):
    machine.loads = False
    with pytest.raises(BuildError, match="Version tag does not match"):
        build()
    assert build.names() == ["build.log"]


def test_an_engine_without_room_for_a_context_leaves_no_plan(machine, build):
    machine.has_context = False
    with pytest.raises(BuildError, match=r"no execution context(?s:.*)lower vision_engine\.max_tiles"):
        build()
    assert build.names() == ["build.log"]


def test_an_engine_of_an_earlier_build_does_not_outlive_a_failed_one(machine, build):
    build()
    machine.build_error = "no memory"
    with pytest.raises(BuildError):
        build()
    assert "model.plan" not in build.names()
    assert "engine.json" not in build.names()


def _context(machine, source, dtype="FLOAT"):
    rows = [-1, *source.output.shape[1:]]
    tensors = [
        {"name": source.input.name, "mode": "INPUT", "dtype": "UINT8", "shape": [-1, *source.input.shape[1:]]},
        {"name": source.output.name, "mode": "OUTPUT", "dtype": dtype, "shape": rows},
    ]
    return Context(machine, {tensor["name"]: tensor for tensor in tensors})


@pytest.fixture
def fp32_source(export_of):
    return VisionDescription.load(export_of(SHAPE, "fp32"))


def test_a_black_tile_runs_on_the_given_stream_and_is_waited_for(machine, fp32_source):
    waited = []
    run_black_tile(_context(machine, fp32_source), fp32_source, "cpu", 4711, lambda: waited.append(machine.streams))
    assert waited == [[4711]]


def test_a_refusal_to_run_fails_the_load_test(machine, fp32_source):
    machine.runs = False
    with pytest.raises(BuildError, match="one tile run; seen: False"):
        run_black_tile(_context(machine, fp32_source), fp32_source, "cpu", 0, lambda: None)


def test_rows_of_another_shape_fail_the_load_test(machine, fp32_source):
    context = _context(machine, fp32_source)
    context._tensors[fp32_source.output.name]["shape"][1] += 1
    with pytest.raises(BuildError, match="shape of one tile's rows"):
        run_black_tile(context, fp32_source, "cpu", 0, lambda: None)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rows_that_are_not_finite_fail_the_load_test(machine, fp32_source, value):
    machine.value = value
    with pytest.raises(BuildError, match="finite values"):
        run_black_tile(_context(machine, fp32_source), fp32_source, "cpu", 0, lambda: None)


def test_rows_that_tensorrt_never_wrote_fail_the_load_test(machine, fp32_source):
    class Idle(Context):
        def execute_async_v3(self, stream_handle):
            return True

    idle = Idle(machine, _context(machine, fp32_source)._tensors)
    with pytest.raises(BuildError, match="finite values"):
        run_black_tile(idle, fp32_source, "cpu", 0, lambda: None)


@pytest.fixture
def gpu(machine, monkeypatch):
    """A GPU that torch sees; its memory is the host's, so what is to run on "cuda" runs on the CPU."""
    stream = SimpleNamespace(cuda_stream=4711, synchronize=lambda: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    monkeypatch.setattr("torch.cuda.Stream", lambda: stream)
    monkeypatch.setattr("torch.cuda.stream", lambda given: contextlib.nullcontext())

    def on_the_host(context, source, device, stream, synchronize):
        assert device == "cuda"
        run_black_tile(context, source, "cpu", stream, synchronize)

    monkeypatch.setattr("nvlm_trt.vision.engine_tensorrt.run_black_tile", on_the_host)


@pytest.mark.usefixtures("gpu")
def test_on_a_gpu_a_tile_is_run_and_the_gpu_is_recorded(machine, build, export_of):
    build(export_of(SHAPE, "fp32"))
    record = TensorrtEngineDescription.load(build.out)
    assert machine.streams == [4711]
    assert record.inference
    assert (record.gpu.name, record.gpu.compute_capability) == ("NVIDIA H100 80GB HBM3", "9.0")


@pytest.mark.usefixtures("gpu")
def test_a_tile_that_gives_no_finite_rows_leaves_no_plan(machine, build, export_of):
    machine.value = math.nan
    with pytest.raises(BuildError, match="finite values"):
        build(export_of(SHAPE, "fp32"))
    assert build.names() == ["build.log"]


def test_times_are_kept_and_used_by_the_next_build(machine, build):
    build()
    assert build.times() == {"gemm": 1.0}
    machine.tactic = "softmax"
    build()
    assert machine.built["known_times"] == {"gemm": 1.0}
    assert build.times() == {"gemm": 1.0, "softmax": 1.0}
    assert not any("timing cache" in line for line in build.told)


def _stored(gpu="H100", **times):
    return json.dumps({"header": ["10.14.1.48", gpu], "times": times}).encode()


@pytest.mark.parametrize("content", [_stored("A100", other=2.0), b"not a cache"])
def test_a_cache_of_another_gpu_or_a_damaged_one_is_set_aside(machine, build, content):
    build.cache.parent.mkdir()
    build.cache.write_bytes(content)
    build()
    assert machine.built["known_times"] == {}
    assert build.times() == {"gemm": 1.0}
    assert build.cache.with_name("vision.cache.other").read_bytes() == content
    assert any("starts with an empty one" in line for line in build.told)


def test_a_cache_that_raises_costs_time_only(machine, build):
    build.cache.parent.mkdir()
    build.cache.write_bytes(_stored(other=2.0))
    machine.cache_raises = True
    build()
    assert "model.plan" in build.names()
    assert any("starts with an empty one" in line for line in build.told)


def test_a_cache_that_cannot_be_read_or_written_costs_time_only(machine, build):
    build.cache.mkdir(parents=True)
    build()
    assert "model.plan" in build.names()
    assert any("cannot be read" in line for line in build.told)
    assert any("cannot be kept" in line for line in build.told)


def test_times_that_another_build_saved_meanwhile_are_kept(machine, build):
    def another_build_saves():
        build.cache.parent.mkdir()
        build.cache.write_bytes(_stored(other=2.0))

    machine.during_build = another_build_saves
    build()
    assert build.times() == {"gemm": 1.0, "other": 2.0}


def test_the_cache_is_not_written_while_another_build_holds_its_lock(machine, build):
    build.cache.parent.mkdir()
    lock = build.cache.with_name("vision.cache.lock")
    at_work = threading.Event()
    machine.during_build = at_work.set
    held = FileLock(lock)
    with held:
        thread = threading.Thread(target=build)
        thread.start()
        assert at_work.wait(20)
        thread.join(0.3)
        assert thread.is_alive()
        build.cache.write_bytes(_stored(other=2.0))
    thread.join(20)
    assert build.times() == {"gemm": 1.0, "other": 2.0}
    assert lock.exists()


def _recipe(**vision_engine):
    return parse_recipe({"name": "r", "target": "gpu", "vision_engine": vision_engine}, "r")


def test_settings_follow_the_recipe_and_default_to_one_image_and_one_request():
    assert vision_settings(_recipe(workspace_gib=1.5), tiles_per_image=7, tiles_per_request=28) == (
        TensorrtVisionSettings(
            min_tiles=1, opt_tiles=7, max_tiles=28, workspace_bytes=3 << 29, optimization_level=3,
            hardware_compatibility="none",
        )
    )  # fmt: skip
    chosen = vision_settings(_recipe(opt_tiles=4, max_tiles=9), tiles_per_image=7, tiles_per_request=28)
    assert (chosen.opt_tiles, chosen.max_tiles) == (4, 9)
    assert vision_settings(_recipe(max_tiles=3), tiles_per_image=7, tiles_per_request=28).opt_tiles == 3


def test_more_tiles_to_tune_for_than_a_batch_may_have_are_refused():
    with pytest.raises(RecipeError, match=r"opt_tiles.*seen: 8.*1 to 5"):
        vision_settings(_recipe(opt_tiles=8, max_tiles=5), tiles_per_image=7, tiles_per_request=28)

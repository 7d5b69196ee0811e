"""The load test: an engine that is not the described one, or runs wrong, leaves no plan."""

from __future__ import annotations

import contextlib
import math
from types import SimpleNamespace

import pytest

from nvlm_trt.errors import BuildError
from nvlm_trt.vision.description import VisionDescription
from nvlm_trt.vision.engine_tensorrt import TensorrtEngineDescription, run_black_tile

from ..fake_tensorrt_engine import Context
from .conftest import SHAPE, SIDE


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

"""A stand-in for the module that tritonserver gives to Python models, and a small spec."""

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from nvlm_trt.model.tokenizer import NvlmTokenizer
from nvlm_trt.recipe import BuildRecipe
from nvlm_trt.serving.spec import ServingSpec

from ..unbuilt_engine import on_gpus, small_recipe, unbuilt_engine


@dataclass
class FakeTensor:
    """pb_utils.Tensor; of types that numpy does not have the values are a torch tensor."""

    label: str
    values: Any

    def name(self) -> str:
        return self.label

    def as_numpy(self) -> np.ndarray:
        return self.values

    def to_dlpack(self) -> Any:
        return torch.utils.dlpack.to_dlpack(self.values)

    @classmethod
    def from_dlpack(cls, label: str, values: Any) -> FakeTensor:
        return cls(label, values)


class FakeError:
    """pb_utils.TritonError."""

    INVALID_ARG, UNAVAILABLE, CANCELLED, INTERNAL = range(4)

    def __init__(self, text: str, code: int) -> None:
        self.text = text
        self.number = code

    def message(self) -> str:
        return self.text

    def code(self) -> int:
        return self.number


class FakeResponse:
    """pb_utils.InferenceResponse."""

    def __init__(self, tensors: list[FakeTensor] | None = None, error: FakeError | None = None) -> None:
        self.tensors = tensors or []
        self.fault = error

    def has_error(self) -> bool:
        return self.fault is not None

    def error(self) -> FakeError | None:
        return self.fault

    def output_tensors(self) -> list[FakeTensor]:
        return self.tensors

    def values(self) -> dict[str, np.ndarray]:
        return {tensor.label: tensor.values for tensor in self.tensors}


class FakeMetric:
    """pb_utils.Metric and, in one, its family: a counter may only grow."""

    COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
    shown: ClassVar[dict[str, FakeMetric]] = {}

    def __init__(self, name: str, description: str, kind: str) -> None:
        assert description
        self.kind, self.value = kind, 0.0
        self.shown[name] = self

    def Metric(self, labels: dict[str, str], buckets: list[float] | None = None) -> FakeMetric:  # noqa: N802 - its name
        assert labels == {}
        assert (buckets is not None) == (self.kind == self.HISTOGRAM)
        return self

    def increment(self, by: float) -> None:
        assert self.kind == self.COUNTER
        assert by > 0
        self.value += by

    def observe(self, value: float) -> None:
        assert self.kind == self.HISTOGRAM
        self.value += value

    def set(self, value: float) -> None:
        assert self.kind == self.GAUGE
        self.value = value


@dataclass
class FakeSender:
    """A response sender."""

    sent: list[tuple[FakeResponse | None, int]] = field(default_factory=list)
    cancelled: bool = False

    def send(self, response: FakeResponse | None = None, flags: int = 0) -> None:
        self.sent.append((response, flags))

    def is_cancelled(self) -> bool:
        return self.cancelled

    @property
    def final(self) -> bool:
        return bool(self.sent) and self.sent[-1][1] == 1


@dataclass
class FakeRequest:
    """A request as a model's execute gets it."""

    tensors: dict[str, np.ndarray]
    wanted: tuple[str, ...] = ()
    text_parameters: str = ""
    identity: str = ""
    sender: FakeSender = field(default_factory=FakeSender)

    def parameters(self) -> str:
        return self.text_parameters

    def requested_output_names(self) -> tuple[str, ...]:
        return self.wanted

    def request_id(self) -> str:
        return self.identity

    def get_response_sender(self) -> FakeSender:
        return self.sender


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """triton_python_backend_utils; `answers` maps a model's name to what BLS calls of it give."""
    module: Any = types.ModuleType("triton_python_backend_utils")
    module.answers = {}

    class InferenceRequest:
        def __init__(
            self,
            model_name: str,
            requested_output_names: list[str],
            inputs: list[FakeTensor],
            preferred_memory: object = None,
        ) -> None:
            self.model, self.wanted = model_name, requested_output_names
            self.inputs = {tensor.label: tensor.values for tensor in inputs}
            self.preferred_memory = preferred_memory

        def exec(self) -> FakeResponse:
            answer: FakeResponse = module.answers[self.model](self.inputs, self.wanted)
            return answer

        async def async_exec(self) -> FakeResponse:
            module.calls.append((self.preferred_memory, self.inputs))
            await asyncio.sleep(0)
            return self.exec()

    module.calls = []
    module.MetricFamily = type("MetricFamily", (FakeMetric,), {"shown": {}})
    module.PreferredMemory = lambda kind, device: (kind, device)
    module.TRITONSERVER_MEMORY_CPU = "cpu"
    module.Tensor = FakeTensor
    module.TritonError = FakeError
    module.InferenceResponse = FakeResponse
    module.InferenceRequest = InferenceRequest
    module.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    module.get_input_tensor_by_name = lambda request, name: (
        FakeTensor(name, request.tensors[name]) if name in request.tensors else None
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    yield module
    for name in [name for name in sys.modules if name.startswith("nvlm_trt.serving.models.")]:
        del sys.modules[name]


@pytest.fixture
def request_of() -> type[FakeRequest]:
    """Makes requests."""
    return FakeRequest


@pytest.fixture
def response_of() -> Callable[..., FakeResponse]:
    """Makes responses of composing models."""

    def make(**tensors: np.ndarray) -> FakeResponse:
        return FakeResponse([FakeTensor(name, values) for name, values in tensors.items()])

    return make


@pytest.fixture
def failed_response() -> FakeResponse:
    """A composing model's fault."""
    return FakeResponse(error=FakeError("Stub process 'x' is not healthy.", FakeError.INTERNAL))


@pytest.fixture
def recipe() -> BuildRecipe:
    """A recipe of the cpu target with small limits."""
    return small_recipe()


@pytest.fixture
def engine_dir(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """An engine directory without engines: config.json and tokenizer."""
    return unbuilt_engine(tiny_checkpoint, tmp_path)


@pytest.fixture
def spec(engine_dir: Path, recipe: BuildRecipe) -> ServingSpec:
    """The spec of that directory."""
    return ServingSpec.of(engine_dir, recipe)


@pytest.fixture
def gpu_recipe(recipe: BuildRecipe) -> BuildRecipe:
    """The same for the gpu target with four ranks."""
    return on_gpus(recipe)


@pytest.fixture
def gpu_spec(engine_dir: Path, gpu_recipe: BuildRecipe) -> ServingSpec:
    """The spec of that directory for the gpu target."""
    return ServingSpec.of(engine_dir, gpu_recipe)


@pytest.fixture
def tokenizer(tiny_checkpoint: Path) -> NvlmTokenizer:
    """The tiny checkpoint's tokenizer."""
    return NvlmTokenizer.load(tiny_checkpoint)


@pytest.fixture
def text() -> Callable[..., np.ndarray]:
    """A tensor of texts or files."""
    return lambda *items: np.array([i.encode() if isinstance(i, str) else i for i in items], dtype=np.object_)

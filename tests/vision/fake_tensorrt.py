"""A stand-in for the `tensorrt` package, with the part of the Python API of 10.14 that docs/versions.md lists.

What it does not have raises AttributeError, for reading and for writing, so that code which calls anything else fails
here. It reads the ONNX graph that it is given: the tensors of the engine that it "builds" are the graph's, so a load
test that compares them compares something. It computes nothing.
"""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass, field
from types import ModuleType

import onnx
from onnx import TensorProto

from .fake_tensorrt_engine import Closed, DataType, Engine, LayerInformationFormat, TensorIOMode


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1
    PREFER_JIT_PYTHON_PLUGINS = 2
    PREFER_AOT_PYTHON_PLUGINS = 3


class BuilderFlag(enum.IntEnum):
    FP16 = 0
    BF16 = 1
    INT8 = 2
    TF32 = 8


class MemoryPoolType(enum.IntEnum):
    WORKSPACE = 0


class HardwareCompatibilityLevel(enum.IntEnum):
    NONE = 0
    AMPERE_PLUS = 1
    SAME_COMPUTE_CAPABILITY = 2


class ProfilingVerbosity(enum.IntEnum):
    LAYER_NAMES_ONLY = 0
    NONE = 1
    DETAILED = 2


TYPES = {
    TensorProto.UINT8: DataType.UINT8,
    TensorProto.FLOAT: DataType.FLOAT,
    TensorProto.FLOAT16: DataType.HALF,
    TensorProto.BFLOAT16: DataType.BF16,
}


@dataclass
class Machine:
    """A machine with the package: what it has, what shall go wrong, and what was asked of it.

    Attributes:
        version: TensorRT's.
        gpu: Caches of another GPU are refused.
        tactic: The kernel that a build measures and adds to its timing cache.
        parse_errors: What the parser finds: (node, name, operator, code, description).
        build_error: What the builder says before it returns nothing.
        cache_raises: Reading a stored cache raises.
        loads: Whether a plan can be loaded.
        has_context: Whether an engine gets an execution context.
        change_plan: Changes the content of a plan before it is serialised.
        during_build: Called while the engine is built.
        runs: Whether an engine runs.
        value: What the engine writes into every row.
        streams: Those that it ran on.
        built: What was asked of the builder.
        parsed: Paths that were parsed.
    """

    version: str = "10.14.1.48"
    gpu: str = "H100"
    tactic: str = "gemm"
    parse_errors: list = field(default_factory=list)
    build_error: str | None = None
    cache_raises: bool = False
    loads: bool = True
    has_context: bool = True
    change_plan: object = lambda plan: None
    during_build: object = lambda: None
    runs: bool = True
    value: float = 0.5
    streams: list = field(default_factory=list)
    built: dict = field(default_factory=dict)
    parsed: list = field(default_factory=list)

    def package(self, *, without: tuple[str, ...] = ()) -> ModuleType:
        """The package; `without` some of its names."""
        return _package(self, without)


class ILogger:
    Severity = Severity

    def __init__(self):
        pass


class IProgressMonitor:
    def __init__(self):
        pass


def _guarded(call, *args):
    """The bindings print what a callback raises, and go on; for step_complete it means "stop"."""
    try:
        return call(*args)
    except BaseException:
        return False


class TimingCache(Closed):
    def __init__(self, header, times):
        self._header, self._times = header, times

    def serialize(self):
        return memoryview(json.dumps({"header": self._header, "times": self._times}).encode())

    def combine(self, input_cache, ignore_mismatch):
        if input_cache._header != self._header and not ignore_mismatch:
            return False
        self._times |= input_cache._times
        return True


class OptimizationProfile(Closed):
    def __init__(self):
        self._shapes = {}

    def set_shape(self, input, min, opt, max):
        if not all(low <= middle <= high for low, middle, high in zip(min, opt, max, strict=True)):
            raise RuntimeError("Shape provided for opt is inconsistent with other shapes.")
        self._shapes[input] = [list(min), list(opt), list(max)]


class BuilderConfig(Closed):
    _attributes = (
        "builder_optimization_level", "hardware_compatibility_level", "profiling_verbosity", "progress_monitor",
    )  # fmt: skip

    def __init__(self, machine, logger):
        self._machine, self._logger = machine, logger
        self._pools, self._flags, self._profiles, self._cache = {}, {BuilderFlag.TF32}, [], None

    def set_memory_pool_limit(self, pool, pool_size):
        self._pools[pool.name] = pool_size

    def clear_flag(self, flag):
        self._flags.discard(flag)

    def add_optimization_profile(self, profile):
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache):
        header = [self._machine.version, self._machine.gpu]
        if not serialized_timing_cache:
            return TimingCache(header, {})
        if self._machine.cache_raises:
            raise RuntimeError("cannot read this cache")
        try:
            content = json.loads(bytes(serialized_timing_cache))
        except ValueError:
            _guarded(self._logger.log, Severity.ERROR, "Deserialization of the timing cache failed")
            return TimingCache(header, {})
        return TimingCache(content["header"], content["times"])

    def set_timing_cache(self, cache, ignore_mismatch):
        if cache._header != [self._machine.version, self._machine.gpu] and not ignore_mismatch:
            return False
        self._cache = cache
        return True

    def get_timing_cache(self):
        return self._cache


class Network(Closed):
    def __init__(self, flags):
        self._flags, self._graph = flags, None


class ParserError(Closed):
    def __init__(self, node, name, operator, code, description):
        self._values = node, name, operator, code, description

    def node(self):
        return self._values[0]

    def node_name(self):
        return self._values[1]

    def node_operator(self):
        return self._values[2]

    def code(self):
        return self._values[3]

    def desc(self):
        return self._values[4]


def _tensor(value, mode):
    kind = value.type.tensor_type
    shape = [-1 if dim.dim_param else dim.dim_value for dim in kind.shape.dim]
    return {"name": value.name, "mode": mode.name, "dtype": TYPES[kind.elem_type].name, "shape": shape}


class _OfMachine(Closed):
    """What the package makes by itself; each package has classes of its own."""

    _machine: Machine


class OnnxParser(_OfMachine):
    def __init__(self, network, logger):
        self._network, self._logger = network, logger

    @property
    def num_errors(self):
        return len(self._machine.parse_errors)

    def get_error(self, index):
        return ParserError(*self._machine.parse_errors[index])

    def parse_from_file(self, model):
        assert isinstance(model, str)
        self._machine.parsed.append(model)
        graph = onnx.load(model).graph  # with its weights, which are looked for beside it
        tensors = [_tensor(value, TensorIOMode.INPUT) for value in graph.input]
        tensors += [_tensor(value, TensorIOMode.OUTPUT) for value in graph.output]
        self._network._graph = tensors
        return not self._machine.parse_errors


class Builder(_OfMachine):
    def __init__(self, logger):
        assert isinstance(logger, ILogger)
        self._logger = logger

    def create_network(self, flags=0):
        return Network(flags)

    def create_builder_config(self):
        return BuilderConfig(self._machine, self._logger)

    def create_optimization_profile(self):
        return OptimizationProfile()

    def build_serialized_network(self, network, config):
        self._machine.built.update(
            flags=network._flags,
            builder_flags={flag.name for flag in config._flags},
            pools=config._pools,
            level=config.builder_optimization_level,
            compatibility=config.hardware_compatibility_level.name,
            verbosity=config.profiling_verbosity.name,
            known_times=dict(config._cache._times),
        )
        _guarded(self._logger.log, Severity.VERBOSE, "a tactic")
        _guarded(self._logger.log, Severity.INFO, "Detected 1 input")
        for _ in range(2):
            _guarded(self._logger.log, Severity.WARNING, "a kernel is slow")
        monitor = getattr(config, "progress_monitor", None)
        if monitor is not None and not _told(monitor):
            return None
        if self._machine.build_error is not None:
            _guarded(self._logger.log, Severity.ERROR, self._machine.build_error)
            return None
        self._machine.during_build()
        config._cache._times[self._machine.tactic] = 1.0
        plan = {
            "tensors": [dict(tensor) for tensor in network._graph],
            "profiles": [profile._shapes for profile in config._profiles],
        }
        self._machine.change_plan(plan)
        return memoryview(json.dumps(plan).encode())


class Runtime(_OfMachine):
    def __init__(self, logger):
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine):
        if not self._machine.loads:
            _guarded(self._logger.log, Severity.ERROR, "Version tag does not match")
            return None
        return Engine(self._machine, json.loads(bytes(memoryview(serialized_engine))))


def _told(monitor) -> bool:
    """Two phases, one inside the other's steps, which is how a build tells its progress; whether it shall go on."""
    _guarded(monitor.phase_start, "Building", None, 2)
    for step in range(2):
        _guarded(monitor.phase_start, "Timing", "Building", 4)
        for inner in range(4):
            if not _guarded(monitor.step_complete, "Timing", inner):
                return False
        _guarded(monitor.phase_finish, "Timing")
        if not _guarded(monitor.step_complete, "Building", step):
            return False
    _guarded(monitor.phase_finish, "Building")
    return True


def _package(machine: Machine, without: tuple[str, ...]) -> ModuleType:
    kinds = (
        NetworkDefinitionCreationFlag, BuilderFlag, MemoryPoolType, HardwareCompatibilityLevel, ProfilingVerbosity,
        DataType, TensorIOMode, LayerInformationFormat, ILogger, IProgressMonitor,
    )  # fmt: skip
    names = {kind.__name__: kind for kind in kinds}
    names |= {
        kind.__name__: type(kind.__name__, (kind,), {"_machine": machine}) for kind in (Builder, OnnxParser, Runtime)
    }
    package = ModuleType("tensorrt")
    package.__dict__.update({name: kind for name, kind in names.items() if name not in without})
    package.__version__ = machine.version
    return package

"""The part of the stand-in for `tensorrt` that is at work when an engine is loaded and run (see fake_tensorrt)."""

from __future__ import annotations

import ctypes
import enum
import json


class DataType(enum.IntEnum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    UINT8 = 5
    BF16 = 7


class TensorIOMode(enum.IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class LayerInformationFormat(enum.IntEnum):
    ONELINE = 0
    JSON = 1


class Closed:
    """An object that takes no attribute that the real one lacks."""

    _attributes: tuple[str, ...] = ()

    def __setattr__(self, name, value):
        if not name.startswith("_") and name not in self._attributes:
            raise AttributeError(f"{type(self).__name__} has no attribute {name}")
        super().__setattr__(name, value)


class Engine(Closed):
    def __init__(self, machine, plan):
        self._machine, self._plan = machine, plan
        self._tensors = {tensor["name"]: tensor for tensor in plan["tensors"]}

    @property
    def num_io_tensors(self):
        return len(self._tensors)

    @property
    def num_optimization_profiles(self):
        return len(self._plan["profiles"])

    def get_tensor_name(self, index):
        return list(self._tensors)[index]

    def get_tensor_mode(self, name):
        return TensorIOMode[self._tensors[name]["mode"]]

    def get_tensor_dtype(self, name):
        return DataType[self._tensors[name]["dtype"]]

    def get_tensor_shape(self, name):
        return list(self._tensors[name]["shape"])

    def get_tensor_profile_shape(self, name, profile_index):
        return self._plan["profiles"][profile_index][name]

    def create_execution_context(self):
        return Context(self._machine, self._tensors) if self._machine.has_context else None

    def create_engine_inspector(self):
        return Inspector()


class Inspector(Closed):
    def get_engine_information(self, format):
        assert format is LayerInformationFormat.JSON
        return json.dumps({"Layers": ["one"]})


class Context(Closed):
    """Writes `machine.value` into every value of a float32 output at its address, which is on the CPU here."""

    def __init__(self, machine, tensors):
        self._machine, self._tensors = machine, tensors
        self._tiles, self._addresses = None, {}

    def set_input_shape(self, name, shape):
        self._tiles = shape[0]
        return self._tensors[name]["mode"] == "INPUT"

    def get_tensor_shape(self, name):
        return [self._tiles if size == -1 else size for size in self._tensors[name]["shape"]]

    def set_tensor_address(self, name, memory):
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle):
        self._machine.streams.append(stream_handle)
        if not self._machine.runs:
            return False
        for name, tensor in self._tensors.items():
            if tensor["mode"] == "OUTPUT":
                count = 1
                for size in self.get_tensor_shape(name):
                    count *= size
                (ctypes.c_float * count).from_address(self._addresses[name])[:] = [self._machine.value] * count
        return True

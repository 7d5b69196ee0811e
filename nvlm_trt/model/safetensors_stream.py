"""Write a safetensors file tensor by tensor, without ever holding it in memory.

The safetensors library writes a whole dictionary at once; converting a 72B model must not. The format is small enough
to write directly: a little-endian u64 header length, a JSON header padded with spaces to 8 bytes, then the data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from nvlm_trt.model.file_writer import Digested, FileWriter

if TYPE_CHECKING:  # names and sizes of tensors are asked for where nothing is computed
    import numpy as np
    import numpy.typing as npt
    import torch

VALUE_BYTES: Final = {"F32": 4, "BF16": 2, "F16": 2, "I8": 1, "F8_E4M3": 1}
"""Bytes of a value by safetensors' word for its dtype."""

TORCH_NAMES: Final = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "I8": "int8", "F8_E4M3": "float8_e4m3fn"}


def torch_dtype(word: str) -> torch.dtype:
    """Torch's dtype of safetensors' word for it."""
    import torch

    dtype: torch.dtype = getattr(torch, TORCH_NAMES[word])
    return dtype


def dtype_word(dtype: torch.dtype) -> str:
    """Safetensors' word for a dtype of torch.

    Raises:
        ValueError: nothing of that dtype is written here.
    """
    name = str(dtype).removeprefix("torch.")
    for word, torch_name in TORCH_NAMES.items():
        if torch_name == name:
            return word
    raise ValueError(f"{dtype} is none of {', '.join(TORCH_NAMES.values())}")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of the file to be: its name, safetensors dtype word and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's values."""
        return math.prod(self.shape) * VALUE_BYTES[self.dtype]


class SafetensorsStream:
    """A safetensors file being written, its tensors in the order of `specs`.

    A tensor may come whole (`write`) or in pieces that follow one another in row-major order (`write_part`). Closing
    without an error demands that every byte was written, and syncs the file to disk.

    Args:
        path: The file, overwritten; callers write beside the final name and rename.
        specs: Every tensor, in the order in which it will be written.
        metadata: The header's ``__metadata__`` strings.
        digested: Told the digest of the whole file when it is closed without an error.
    """

    def __init__(
        self,
        path: Path,
        specs: Sequence[TensorSpec],
        metadata: Mapping[str, str] | None = None,
        digested: Digested | None = None,
    ) -> None:
        self._specs = list(specs)
        self._position = 0
        self._written = 0
        self._file = FileWriter(path, digested)
        self._file.write(_header(self._specs, metadata or {"format": "pt"}))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._file.close()

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write one whole tensor.

        Raises:
            ValueError: its name, dtype or shape is not the next one's.
        """
        spec = self._next_spec(name)
        if tuple(tensor.shape) != spec.shape:
            raise ValueError(f"{name}: shape {tuple(tensor.shape)}, expected {spec.shape}")
        self.write_part(name, tensor)

    def write_part(self, name: str, part: torch.Tensor) -> None:
        """Write the next piece of the tensor `name`.

        Raises:
            ValueError: another tensor is due, the dtype differs, or the piece is longer than what is left.
        """
        spec = self._next_spec(name)
        if dtype_word(part.dtype) != spec.dtype:
            raise ValueError(f"{name}: dtype {part.dtype}, expected {spec.dtype}")
        data = as_bytes(part)
        if self._written + data.nbytes > spec.nbytes:
            raise ValueError(f"{name}: more than {spec.nbytes} bytes")
        self._file.write(data.data)
        self._written += data.nbytes
        self._skip_complete()

    def _next_spec(self, name: str) -> TensorSpec:
        if self._position >= len(self._specs):
            raise ValueError(f"{name}: every tensor is written")
        spec = self._specs[self._position]
        if spec.name != name:
            raise ValueError(f"{name}: expected {spec.name} next")
        return spec

    def _skip_complete(self) -> None:
        if self._written == self._specs[self._position].nbytes:
            self._position += 1
            self._written = 0

    def _finish(self) -> None:
        if self._position < len(self._specs):
            raise ValueError(f"incomplete: {self._specs[self._position].name} is not written")
        self._file.finish()


def as_bytes(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    """A tensor's values as flat bytes, without a copy where it is contiguous."""
    import torch

    return tensor.contiguous().view(-1).view(torch.uint8).numpy()


def _header(specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    members: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for spec in specs:
        members[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.nbytes],
        }
        offset += spec.nbytes
    text = json.dumps(members, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text

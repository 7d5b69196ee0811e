"""An NVLM-D checkpoint on disk, read lazily: headers when it is opened, one tensor (or some rows) at a time after that.

Layers may straddle shards (layer 0's norms lie in shard 1, its matrices in shard 2), so tensors are found by the index.
Nothing stays open or mapped between reads: the memory of a walk over all tensors is that of the largest one. Whoever
reads everything from end to end does so through `row_reader`, which keeps the shards open.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nvlm_trt.errors import CheckpointError, listed
from nvlm_trt.model.config import NvlmConfig, load_config
from nvlm_trt.model.safetensors_read import opened, read_header
from nvlm_trt.model.safetensors_stream import VALUE_BYTES
from nvlm_trt.model.tensors import Shape, expected_tensors, vision_layer
from nvlm_trt.parsed import json_value

if TYPE_CHECKING:  # headers are read where nothing is computed
    import torch

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
ITEM_BYTES = {word: VALUE_BYTES[word] for word in ("F32", "BF16", "F16")}
"""The dtypes accepted in a checkpoint, with the bytes of a value; the release mixes F32 and BF16."""

SHARD = "a shard"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies and what it is; `dtype` is safetensors' own word (F32, BF16, F16)."""

    name: str
    shape: Shape
    dtype: str
    file: Path
    nbytes: int


class Checkpoint:
    """An opened checkpoint: configuration and tensor headers, values on demand.

    Attributes:
        path: The checkpoint directory.
        config: Its configuration.
        tensors: Header of every tensor by name.
        dummy_heads: All-zero attention heads appended to the real ones in every ViT block (found from shapes).
    """

    def __init__(self, path: Path, config: NvlmConfig, tensors: Mapping[str, TensorInfo]) -> None:
        self.path = path
        self.config = config
        self.tensors = tensors
        self.dummy_heads = _find_dummy_heads(config, tensors)

    @classmethod
    def open(cls, path: Path | str) -> Checkpoint:
        """Read config.json and every shard's header, and check names, shapes and dtypes.

        Raises:
            CheckpointError: with every fault in one message.
        """
        directory = Path(path)
        config = load_config(directory)
        checkpoint = cls(directory, config, _read_headers(directory))
        checkpoint.check()
        return checkpoint

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    def check(self) -> None:
        """Compare names, shapes and dtypes with what the configuration demands, in both directions.

        Raises:
            CheckpointError: listing every missing, unexpected and misshapen tensor.
        """
        expected = expected_tensors(self.config, self.dummy_heads)
        missing = [name for name in expected if name not in self.tensors]
        extra = [name for name in self.tensors if name not in expected]
        faults = [f"missing: {name} {list(expected[name])}" for name in missing]
        faults += [f"unexpected: {name} {list(self.tensors[name].shape)}" for name in extra]
        for name, info in self.tensors.items():
            if name in expected and info.shape != expected[name]:
                faults.append(f"shape: {name} seen {list(info.shape)}, expected {list(expected[name])}")
            if info.dtype not in ITEM_BYTES:
                faults.append(f"dtype: {name} seen {info.dtype}, expected one of {', '.join(ITEM_BYTES)}")
        _raise_faults(self.path, faults)

    def check_dummy_heads(self) -> None:
        """Check that the dummy heads contribute nothing, so that they may be stripped.

        A head contributes nothing when its rows of v, or its columns of proj, are zero. The released padding zeroes
        every row and column (Megatron-LM, internvit_converter.py), so all of them are demanded here; the norm weights
        of dummy positions multiply zeros and may hold anything.

        Raises:
            CheckpointError: naming every tensor with a value other than zero in a dummy head.
        """
        if not self.dummy_heads:
            return
        vision = self.config.vision
        real, head_dim = vision.hidden_size, vision.head_dim
        padded = real + self.dummy_heads * head_dim
        faults = []
        for index in range(vision.num_layers):
            qkv_name, proj_name = f"{vision_layer(index)}attn.qkv.weight", f"{vision_layer(index)}attn.proj.weight"
            for part, letter in enumerate("qkv"):
                rows = self.read_rows(qkv_name, part * padded + real, (part + 1) * padded)
                if rows.count_nonzero():
                    faults.append(f"{qkv_name}: dummy rows of {letter} are not zero")
            if self.read(proj_name)[:, real:].count_nonzero():
                faults.append(f"{proj_name}: dummy columns are not zero")
        _raise_faults(self.path, faults)

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Read one tensor, cast to `dtype` if given (round to nearest even)."""
        info = self.info(name)
        with opened(info.file, SHARD) as shard:
            tensor: torch.Tensor = shard.get_tensor(name)
            return tensor if dtype is None else tensor.to(dtype)

    def read_rows(self, name: str, start: int, stop: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Read rows [start, stop) of dimension 0 of a tensor; other rows are not touched."""
        info = self.info(name)
        with opened(info.file, SHARD) as shard:
            tensor: torch.Tensor = shard.get_slice(name)[start:stop]
            return tensor if dtype is None else tensor.to(dtype)

    def info(self, name: str) -> TensorInfo:
        """Header of one tensor.

        Raises:
            CheckpointError: there is none of that name.
        """
        try:
            return self.tensors[name]
        except KeyError:
            raise CheckpointError("the checkpoint has no such tensor", seen=name) from None


def _read_headers(directory: Path) -> dict[str, TensorInfo]:
    index = directory / INDEX_NAME
    single = directory / SINGLE_NAME
    if index.is_file():
        return _read_indexed(directory, _read_weight_map(index))
    if single.is_file():
        return {info.name: info for info in _shard_headers(single)}
    raise CheckpointError(
        "the checkpoint has no safetensors weights",
        seen=directory,
        expected=f"{INDEX_NAME} with its shards, or {SINGLE_NAME}",
        fix="other formats (.bin, .pth) are not read: they can run code",
    )


def _read_weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json_value(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the index cannot be read ({type(error).__name__}: {error})", seen=index) from None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError("the index's weight_map is not an object of file names", seen=index)
    outside = sorted({file for file in weight_map.values() if Path(file).name != file})
    if outside:
        raise CheckpointError("the index names files outside the checkpoint directory", seen=outside)
    return weight_map


def _read_indexed(directory: Path, weight_map: Mapping[str, str]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    faults = []
    for file in sorted(set(weight_map.values())):
        try:
            headers = {info.name: info for info in _shard_headers(directory / file)}
        except CheckpointError as error:
            faults.append(str(error))
            continue
        named = {name for name, where in weight_map.items() if where == file}
        faults += [f"{file}: the index names {name}, the shard lacks it" for name in sorted(named - headers.keys())]
        faults += [f"{file}: {name} is not in the index" for name in sorted(headers.keys() - named)]
        tensors |= {name: info for name, info in headers.items() if name in named}
    _raise_faults(directory, faults)
    return {name: tensors[name] for name in weight_map}


def _shard_headers(file: Path) -> Iterable[TensorInfo]:
    if not file.is_file():
        raise CheckpointError("a shard is missing", seen=file.name)
    for name, (shape, dtype) in read_header(file, SHARD).items():
        yield TensorInfo(name, shape, dtype, file, math.prod(shape) * ITEM_BYTES.get(dtype, 0))


def _find_dummy_heads(config: NvlmConfig, tensors: Mapping[str, TensorInfo]) -> int:
    """Heads that the qkv weights hold beyond the configured ones; shapes that disagree are left for check()."""
    head_dim, heads = config.vision.head_dim, config.vision.num_heads
    rows: Counter[int] = Counter()
    for index in range(config.vision.num_layers):
        info = tensors.get(f"{vision_layer(index)}attn.qkv.weight")
        if info is not None and info.shape and info.shape[0] % (3 * head_dim) == 0:
            rows[info.shape[0] // (3 * head_dim)] += 1
    if not rows:
        return 0
    return max(0, rows.most_common(1)[0][0] - heads)


def _raise_faults(path: Path, faults: list[str]) -> None:
    if faults:
        raise CheckpointError(f"{path.name}: {len(faults)} faults in the checkpoint{listed(faults)}")

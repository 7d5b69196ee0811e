"""Rows of a checkpoint's tensors at the speed of the disk: shards stay open, and blocks go into the same memory.

`Checkpoint.read_rows` opens the shard, reads its header and maps it for every call; with blocks of a few megabytes that
and the page faults cost as much as the bytes. Here the bytes are copied once, from the kernel's cache.
"""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

import torch

from nvlm_trt.errors import CheckpointError
from nvlm_trt.model.checkpoint import ITEM_BYTES, SHARD, Checkpoint
from nvlm_trt.model.file_writer import FileWriter
from nvlm_trt.model.safetensors_read import data_offsets
from nvlm_trt.model.safetensors_stream import torch_dtype

Item = TypeVar("Item")

SHORT: Final = f"{SHARD} is shorter than its header says"

BUFFERS: Final = 2
"""One block is being used while the next one is read."""


class RowReader:
    """Reads blocks of rows; a context manager that closes the shards.

    A block is a view of one of `BUFFERS` buffers: it holds its values until as many further blocks have been read.

    Args:
        checkpoint: The source.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._shards: dict[Path, tuple[int, dict[str, int]]] = {}
        self._buffers = [torch.empty(0, dtype=torch.uint8) for _ in range(BUFFERS)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor, _ in self._shards.values():
            os.close(descriptor)
        self._shards.clear()

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of dimension 0 of a tensor, in the checkpoint's dtype.

        Raises:
            CheckpointError: there is no such tensor, or its shard cannot be read.
        """
        info = self._checkpoint.info(name)
        width = math.prod(info.shape[1:])
        row_bytes = width * ITEM_BYTES[info.dtype]
        buffer = self._buffer((stop - start) * row_bytes)
        descriptor, offsets = self._shard(info.file)
        _fill(descriptor, buffer, offsets[name] + start * row_bytes, info.file)
        return buffer.view(torch_dtype(info.dtype)).view(stop - start, *info.shape[1:])

    def send(self, name: str, start: int, stop: int, out: FileWriter) -> None:
        """Append rows [start, stop) of a tensor to a file as they are stored, without reading them into this process.

        Raises:
            CheckpointError: there is no such tensor, or its shard cannot be read.
        """
        info = self._checkpoint.info(name)
        row_bytes = math.prod(info.shape[1:]) * ITEM_BYTES[info.dtype]
        descriptor, offsets = self._shard(info.file)
        size = (stop - start) * row_bytes
        if out.take(descriptor, offsets[name] + start * row_bytes, size) < size:
            raise CheckpointError(SHORT, seen=info.file)

    def _buffer(self, size: int) -> torch.Tensor:
        buffer = self._buffers.pop(0)
        if len(buffer) < size:
            buffer = torch.empty(size, dtype=torch.uint8)
        self._buffers.append(buffer)
        return buffer[:size]

    def _shard(self, file: Path) -> tuple[int, dict[str, int]]:
        if file not in self._shards:
            offsets = data_offsets(file, SHARD)
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            self._shards[file] = descriptor, offsets
        return self._shards[file]


def _fill(descriptor: int, buffer: torch.Tensor, offset: int, file: Path) -> None:
    view = buffer.numpy().data
    while view:
        try:
            count = os.preadv(descriptor, [view], offset)
        except OSError as error:
            raise CheckpointError(f"{SHARD} cannot be read ({error.strerror})", seen=file) from None
        if not count:
            raise CheckpointError(SHORT, seen=file)
        view, offset = view[count:], offset + count


def read_ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The same items, each made by another thread while the one before is being used."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending = pool.submit(next, items, None)
        while (item := pending.result()) is not None:
            pending = pool.submit(next, items, None)
            yield item

"""Run many samples through a deep model with the memory of one layer: layer by layer, hidden states on disk.

All samples go through a layer before the next one is loaded. Their hidden states after a layer form a generation: one
safetensors file, written beside the one it was computed from and renamed when the layer is finished. So a process that
is killed at any moment resumes after the last finished layer, and ends with the bytes of an undisturbed run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch

from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.safetensors_read import opened
from nvlm_trt.model.safetensors_stream import SafetensorsStream, TensorSpec, dtype_word
from nvlm_trt.progress import Progress

GENERATION_FILE = re.compile(r"hidden_(\d+)\.safetensors")

HIDDEN_STATES = "the hidden states of an unfinished run"


class Layer(Protocol):
    """One layer, in memory."""

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """The hidden states of one sample after the layer, same shape and dtype, on the CPU."""

    def finish(self) -> None:
        """Called when every sample has passed; what it keeps must be safe on disk when it returns."""


class HiddenStates:
    """The hidden states of samples after some number of layers, on disk.

    Args:
        folder: Where they lie, made if it is missing; files of runs with another key are removed.
        key: What the run is: hidden states are taken up again only by a run with the same key.
        shapes: Shape of each sample's hidden states.
        dtype: Their dtype.
    """

    def __init__(
        self, folder: Path, key: str, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype = torch.bfloat16
    ) -> None:
        word = dtype_word(dtype)
        self._folder = folder
        self._key = hashlib.sha256(f"{key} {word} {list(shapes)}".encode()).hexdigest()
        self._specs = [TensorSpec(f"sample_{index:05d}", word, tuple(shape)) for index, shape in enumerate(shapes)]
        folder.mkdir(parents=True, exist_ok=True)
        self.generation = self._newest()

    def begin(self, first: Iterable[torch.Tensor]) -> None:
        """Take `first` as what enters layer 0, unless the run has begun before: then nothing is computed."""
        if self.generation is None:
            self._write(0, first)
            self._commit(0)

    def __len__(self) -> int:
        return len(self._specs)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """The hidden states of every sample after `generation` layers, one at a time in memory."""
        if self.generation is None:
            raise RuntimeError("the run has not begun")
        for spec in self._specs:
            with opened(self._path(self.generation), HIDDEN_STATES) as file:  # unmapped between samples
                sample = file.get_tensor(spec.name).clone()
            yield sample

    def advance(self, layer: Layer, told: Callable[[int], None] | None = None) -> None:
        """Put every sample through the layer, finish it, and make the result the current generation.

        Args:
            layer: The layer after the current generation.
            told: Called with the number of samples that are through.
        """
        assert self.generation is not None
        self._write(self.generation + 1, self._passed(layer, told or (lambda _: None)))
        layer.finish()
        self._commit(self.generation + 1)

    def _passed(self, layer: Layer, told: Callable[[int], None]) -> Iterator[torch.Tensor]:
        for number, hidden in enumerate(self, start=1):
            yield layer(hidden)
            told(number)

    def _write(self, generation: int, samples: Iterable[torch.Tensor]) -> None:
        with SafetensorsStream(self._beside(generation), self._specs, {"format": "pt", "key": self._key}) as stream:
            for spec, sample in zip(self._specs, samples, strict=True):
                stream.write(spec.name, sample)

    def _commit(self, generation: int) -> None:
        self._beside(generation).replace(self._path(generation))
        if self.generation is not None:
            self._path(self.generation).unlink()
        self.generation = generation

    def _newest(self) -> int | None:
        """The newest generation of a run with the same key; files of others, and older ones, are removed."""
        own: list[int] = []
        for path in self._folder.iterdir():
            match = GENERATION_FILE.fullmatch(path.name)
            if match is None:
                continue
            with opened(path, HIDDEN_STATES) as file:
                same = (file.metadata() or {}).get("key") == self._key
            if same:
                own.append(int(match[1]))
            else:
                path.unlink()
        for generation in sorted(own)[:-1]:  # left by a kill between the rename and the removal
            self._path(generation).unlink()
        return max(own, default=None)

    def _path(self, generation: int) -> Path:
        return self._folder / f"hidden_{generation:03d}.safetensors"

    def _beside(self, generation: int) -> Path:
        return self._folder / f".hidden_{generation:03d}.tmp"


def newest_generation(folder: Path) -> int:
    """Layers that the samples of an unfinished run have passed, by its folder alone; 0 where nothing has begun."""
    matches = [GENERATION_FILE.fullmatch(path.name) for path in folder.glob("*")]
    return max((int(match[1]) for match in matches if match), default=0)


def stream_layers(
    states: HiddenStates,
    layer_bytes: Sequence[int],
    open_layer: Callable[[int], Layer],
    progress: Progress | None = None,
) -> None:
    """Put the samples through all layers, from the current generation on; one layer is held at a time.

    Args:
        states: The samples, begun.
        layer_bytes: Bytes of each layer's weights, which weigh the progress.
        open_layer: Loads the layer of an index.
        progress: Told the bytes of the layers so far, of a layer under way the share of samples that are through.
    """
    total, count = sum(layer_bytes), len(states)
    assert states.generation is not None
    for index in range(states.generation, len(layer_bytes)):
        before, size = sum(layer_bytes[:index]), layer_bytes[index]

        def told(number: int, before: int = before, size: int = size) -> None:
            if progress is not None:
                progress(before + size * number // count, total)

        states.advance(open_layer(index), told)


def weight_bytes(checkpoint: Checkpoint, prefix: str) -> int:
    """Bytes in the checkpoint of all tensors whose names begin with `prefix`."""
    return sum(info.nbytes for name, info in checkpoint.tensors.items() if name.startswith(prefix))


def read_weights(
    checkpoint: Checkpoint, prefix: str, dtype: torch.dtype, device: torch.device
) -> dict[str, torch.Tensor]:
    """All tensors whose names begin with `prefix`."""
    return {name: checkpoint.read(name, dtype).to(device) for name in checkpoint.tensors if name.startswith(prefix)}


def checkpoint_key(checkpoint: Checkpoint) -> str:
    """What tells a checkpoint on disk from another or a changed one, without reading its weights."""
    stamps = {info.file: info.file.stat() for info in checkpoint.tensors.values()}
    return " ".join(f"{file.name} {stat.st_size} {stat.st_mtime_ns}" for file, stat in sorted(stamps.items()))

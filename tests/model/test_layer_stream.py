"""Samples pass layer after layer with one layer in memory; a kill at any moment costs the layer under way at most."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from nvlm_trt.model.reference.layer_stream import HiddenStates, stream_layers

LAYERS = 4
SHAPES = [(3, 8), (5, 8), (1, 8)]


class KilledError(Exception):
    """Stands for the end of the process."""


class Doubling:
    """A layer that multiplies by two and adds its index; counts how many of its kind are alive."""

    alive: ClassVar[weakref.WeakSet[Doubling]] = weakref.WeakSet()

    def __init__(self, index: int, log: list[str], kill: str | None = None) -> None:
        self.index, self.log, self.kill = index, log, kill
        self.most = len(self.alive) + 1
        self.alive.add(self)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        self.note(f"run {self.index}")
        return hidden * 2 + self.index

    def finish(self) -> None:
        self.note(f"finish {self.index}")

    def note(self, event: str) -> None:
        if event == self.kill:
            raise KilledError
        self.log.append(event)


def first() -> Iterator[torch.Tensor]:
    for number, shape in enumerate(SHAPES):
        yield torch.full(shape, float(number), dtype=torch.bfloat16)


def run(folder: Path, log: list[str], kill: str | None = None, key: str = "key") -> list[torch.Tensor]:
    states = HiddenStates(folder, key, SHAPES)
    states.begin(first())
    stream_layers(states, [10] * LAYERS, lambda index: Doubling(index, log, kill))
    return list(states)


def test_every_sample_passes_every_layer_in_order(tmp_path: Path) -> None:
    log: list[str] = []
    results = run(tmp_path, log)
    for sample, result in zip(first(), results, strict=True):
        for index in range(LAYERS):
            sample = sample * 2 + index
        assert torch.equal(result, sample)
    assert log == [event for index in range(LAYERS) for event in (*[f"run {index}"] * len(SHAPES), f"finish {index}")]


def test_only_the_last_generation_stays_on_disk(tmp_path: Path) -> None:
    run(tmp_path, [])
    assert [path.name for path in tmp_path.iterdir()] == [f"hidden_{LAYERS:03d}.safetensors"]


@pytest.mark.parametrize("kill", ["run 0", "finish 0", "run 2", "finish 3"])
def test_a_killed_run_repeats_the_layer_under_way_and_no_other(tmp_path: Path, kill: str) -> None:
    expected = run(tmp_path / "undisturbed", [])
    with pytest.raises(KilledError):
        run(tmp_path / "work", [], kill)
    log: list[str] = []
    results = run(tmp_path / "work", log)
    assert all(torch.equal(*pair) for pair in zip(results, expected, strict=True))
    index = int(kill.split()[1])
    assert log[0] == f"run {index}"
    assert len(log) == (LAYERS - index) * (len(SHAPES) + 1)


def test_a_kill_between_the_rename_and_the_removal_of_the_older_generation_does_no_harm(tmp_path: Path) -> None:
    expected = run(tmp_path / "undisturbed", [])
    with pytest.raises(KilledError):
        run(tmp_path / "work", [], "run 1")
    older = tmp_path / "work" / "hidden_001.safetensors"
    content = older.read_bytes()
    with pytest.raises(KilledError):
        run(tmp_path / "work", [], "run 2")
    older.write_bytes(content)
    results = run(tmp_path / "work", [])
    assert all(torch.equal(*pair) for pair in zip(results, expected, strict=True))
    assert not older.exists()


def test_a_run_that_is_killed_before_its_first_layer_begins_anew(tmp_path: Path) -> None:
    def broken() -> Iterator[torch.Tensor]:
        yield next(first())
        raise KilledError

    with pytest.raises(KilledError):
        HiddenStates(tmp_path, "key", SHAPES).begin(broken())
    assert HiddenStates(tmp_path, "key", SHAPES).generation is None
    assert len(run(tmp_path, [])) == len(SHAPES)


def test_work_of_another_run_is_not_taken_up(tmp_path: Path) -> None:
    run(tmp_path, [])
    log: list[str] = []
    run(tmp_path, log, key="another")
    assert log[0] == "run 0"
    assert HiddenStates(tmp_path, "another", [(2, 8)]).generation is None


def test_one_layer_is_alive_at_a_time(tmp_path: Path) -> None:
    seen: list[int] = []

    def opened(index: int) -> Doubling:
        layer = Doubling(index, [])
        seen.append(layer.most)
        return layer

    states = HiddenStates(tmp_path, "key", SHAPES)
    states.begin(first())
    stream_layers(states, [10] * LAYERS, opened)
    assert seen == [1] * LAYERS


def test_progress_counts_layers_by_their_bytes_and_samples_within_them(tmp_path: Path) -> None:
    states = HiddenStates(tmp_path, "key", SHAPES)
    states.begin(first())
    told: list[tuple[int, int]] = []
    stream_layers(states, [30, 90], lambda index: Doubling(index, []), lambda *done: told.append(done))
    assert told == [(10, 120), (20, 120), (30, 120), (60, 120), (90, 120), (120, 120)]

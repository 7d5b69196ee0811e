"""A tile is encoded in slices: what happens between them changes no bit of its rows."""

from __future__ import annotations

import queue
import threading
import time

import numpy as np
import pytest

from nvlm_trt.turns import Turns
from nvlm_trt.vision import slices
from nvlm_trt.vision.encoder import TileEncoder
from nvlm_trt.vision.runner import VisionRunner

SHAPE = "five heads and three dummies"


@pytest.fixture(autouse=True)
def as_many_slices_as_can_be(monkeypatch):
    monkeypatch.setattr(slices, "LEAST_WORK", 0)


class Counted(Turns):
    """Counts how often the turn was passed on, and calls back."""

    def __init__(self) -> None:
        super().__init__()
        self.passed = 0
        self.call = lambda: None

    def pass_on(self) -> None:
        self.passed += 1
        self.call()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rows_are_those_of_a_run_in_one_piece(export_of, checkpoint_of, tiles_of, precision):
    config = checkpoint_of(SHAPE).config
    tiles, turns = tiles_of(3, config.tile_size), Counted()
    engine = export_of(SHAPE, precision) / "cpu"
    sliced = VisionRunner(engine, threads=1, turns=turns).encode(tiles)
    assert np.array_equal(sliced, VisionRunner(engine, threads=1).encode(tiles))
    assert turns.passed == len(tiles) * 2 * config.vision.num_layers


def test_a_tile_that_is_cancelled_between_slices_ends_and_the_next_one_is_whole(export_of, checkpoint_of, tiles_of):
    tiles, turns = tiles_of(1, checkpoint_of(SHAPE).config.tile_size), Counted()
    runner = VisionRunner(export_of(SHAPE, "fp32") / "cpu", threads=1, turns=turns)
    whole, passed = runner.encode(tiles), turns.passed
    turns.call = runner.cancel
    with pytest.raises(RuntimeError):
        runner.encode(tiles)
    assert turns.passed == passed + 1
    turns.call = lambda: None
    assert np.array_equal(runner.encode(tiles), whole)


def test_the_turn_is_free_after_a_tile_that_was_cancelled(export_of, checkpoint_of, tiles_of, tmp_path):
    mine, others = Turns(tmp_path), Turns(tmp_path)
    runner = VisionRunner(export_of(SHAPE, "fp32") / "cpu", threads=1, turns=mine)
    tiles = tiles_of(1, checkpoint_of(SHAPE).config.tile_size)
    others.take()
    ended = threading.Thread(target=lambda: runner.encode(tiles))
    ended.start()
    others.give()
    ended.join()
    assert others.take() < 30


def test_a_tile_that_is_given_up_while_it_waits_for_its_turn_is_not_begun(
    export_of, checkpoint_of, tiles_of, tmp_path, caplog
):
    tiles = tiles_of(2, checkpoint_of(SHAPE).config.tile_size)
    mine, others, ended = Turns(tmp_path), Turns(tmp_path), queue.SimpleQueue()
    encoder = TileEncoder(VisionRunner(export_of(SHAPE, "fp32") / "cpu", threads=1, turns=mine))
    others.take()
    give_up = encoder.submit(tiles[:1], ended.put)
    while not mine.waiting:
        time.sleep(0.002)
    assert give_up()
    encoder.submit(tiles[1:], ended.put)
    others.give()
    assert ended.get(timeout=60).shape[0] == 1
    encoder.close()
    slices_of_a_tile = 2 * checkpoint_of(SHAPE).config.vision.num_layers + 1
    assert mine.count == 1 + slices_of_a_tile
    assert ended.empty()
    assert not caplog.text


def test_a_small_tile_stays_whole_and_a_larger_one_has_slices_of_some_work(
    export_of, checkpoint_of, tiles_of, monkeypatch
):
    config = checkpoint_of(SHAPE).config
    layers, rows = config.vision.num_layers, config.vision.patches_per_side**2 + 1
    half_a_layer = 12 * rows * config.vision.hidden_size**2
    passed = []
    for least in (1e12, 2 * half_a_layer):
        monkeypatch.setattr(slices, "LEAST_WORK", least)
        turns = Counted()
        VisionRunner(export_of(SHAPE, "fp32") / "cpu", threads=1, turns=turns).encode(tiles_of(1, config.tile_size))
        passed.append(turns.passed)
    assert passed == [0, layers]

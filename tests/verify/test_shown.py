"""Which requests a verification shows: its own, and samples of a task as the engine reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nvlm_trt.errors import EngineError
from nvlm_trt.eval.tasks import Sample
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.tokenizer import NvlmTokenizer
from nvlm_trt.recipe import parse_recipe
from nvlm_trt.verify.cases import Limits, make_picture, swapped_tiles
from nvlm_trt.verify.shown import show

ROOMY = Limits(input_len=4096, images=4, tiles=6)
ORIENTATION, QUARTER_TURN = 0x0112, 6

MakeSample = Callable[..., Sample]


@pytest.fixture
def sample_of(tmp_path: Path) -> MakeSample:
    """A sample about one picture of a size, lying on its side for its EXIF if `turned`."""

    def make(name: str, width: int, height: int, *, question: str = "What?", turned: bool = False) -> Sample:
        exif = Image.Exif()
        if turned:
            exif[ORIENTATION] = QUARTER_TURN
        file = tmp_path / f"{name}.jpg"
        make_picture(width, height, seed=1).save(file, exif=exif)
        return Sample(name, (file,), question, (), ("a",), "exact")

    return make


def limits_of(**fields: object) -> Limits:
    return Limits.of(parse_recipe({"name": "x", "target": "cpu", **fields}, "x"), 4096)


def test_limits_are_those_of_the_recipe_and_of_the_room_that_the_engine_has() -> None:
    limits = limits_of(max_input_len=9000, max_images=2, max_tiles=3, image_limits={"max_side": 70})
    assert (limits.input_len, limits.images, limits.tiles) == (4096, 2, 3)
    assert (limits.files.max_side, limits.files.min_side, limits.exif_orientation) == (70, 2, True)


@pytest.mark.parametrize(("exif_orientation", "size"), [(True, (100, 240)), (False, (240, 100))])
def test_images_of_samples_are_turned_as_the_recipe_says(
    opened: Checkpoint,
    tokenizer: NvlmTokenizer,
    sample_of: MakeSample,
    exif_orientation: bool,
    size: tuple[int, int],
) -> None:
    limits = limits_of(exif_orientation=exif_orientation)
    shown = show(opened.config, tokenizer, limits, 2, [sample_of("lying", 240, 100, turned=True)])
    assert [picture.size for case in shown.others for picture in case.pictures] == [size]


def test_samples_that_the_engine_refuses_are_passed_over(
    opened: Checkpoint, tokenizer: NvlmTokenizer, sample_of: MakeSample
) -> None:
    damaged = sample_of("damaged", 100, 100)
    damaged.images[0].write_bytes(b"no image")
    one_placeholder = sample_of("two", 100, 100)
    two = Sample("two", one_placeholder.images * 2, "<image> What?", (), ("a",), "exact")
    samples = [sample_of("wide", 300, 90), damaged, two, sample_of("small", 90, 80, question="Which?")]
    shown = show(opened.config, tokenizer, limits_of(image_limits={"max_side": 200}), 2, samples)
    assert [case.question for case in shown.others] == ["Which?"]
    assert len(shown.swapped) == 2 + 1
    assert [case.question for case in show(opened.config, tokenizer, ROOMY, 2, samples).others] == ["What?", "Which?"]


def test_a_sample_is_swapped_with_the_next_one_that_shows_something_else(
    opened: Checkpoint, tokenizer: NvlmTokenizer, sample_of: MakeSample
) -> None:
    page, again, other = (sample_of(name, 240, 100) for name in ("page", "again", "other"))
    make_picture(100, 240, seed=2).save(other.images[0])
    shown = show(opened.config, tokenizer, ROOMY, 2, [page, again, other])
    expected = [swapped_tiles(shown.others[place], opened.config, ROOMY, shown.others[2].pictures) for place in (0, 1)]
    for tiles, swapped in zip(expected, shown.swapped[2:4], strict=True):
        assert np.array_equal(tiles, swapped)
    first, _ = show(opened.config, tokenizer, ROOMY, 2, [page, again]).swapped[2:]
    assert np.array_equal(first, swapped_tiles(shown.others[0], opened.config, ROOMY)), "there is no other picture"


@pytest.mark.parametrize(("count", "images"), [(1, [0, 1]), (2, [0, 1]), (3, [0, 1, 2])])
def test_there_is_a_case_with_an_image_however_few_are_asked_for(
    opened: Checkpoint, tokenizer: NvlmTokenizer, count: int, images: list[int]
) -> None:
    shown = show(opened.config, tokenizer, ROOMY, count)
    assert [len(case.pictures) for case in shown.cases] == images
    assert [len(tiles) > 0 for tiles in shown.swapped] == [number > 0 for number in images]
    assert shown.cases_alone().cases == shown.cases


def test_an_engine_without_room_for_an_image_is_refused_with_the_room_that_it_needs(
    opened: Checkpoint, tokenizer: NvlmTokenizer
) -> None:
    needed = len(show(opened.config, tokenizer, ROOMY, 2).cases[1].prompt.input_ids)
    assert len(show(opened.config, tokenizer, Limits(needed, 4, 6), 3).everything) == 3
    with pytest.raises(EngineError, match=rf"too short for an image.*seen: {needed - 1} tokens.*at least {needed},"):
        show(opened.config, tokenizer, Limits(needed - 1, 4, 6), 3)
    with pytest.raises(EngineError, match="too short for any question"):
        show(opened.config, tokenizer, Limits(5, 4, 6), 3)

"""The requests: the same for everybody, and none twice."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError

from nvlm_trt.bench.workload import Workload


def test_no_two_requests_are_alike_and_every_subject_gets_the_same_ones() -> None:
    workload = Workload(columns=1)
    asked = [workload.question(number, 28) for number in range(6)]
    assert len({question.images for question in asked}) == 6
    assert asked == [workload.question(number, 28) for number in range(6)]
    texts = [Workload(text_only=True).question(number, 28) for number in range(3)]
    assert len({question.text for question in texts}) == 3
    assert all(question.images == () for question in texts)
    assert len({len(question.text) for question in texts}) == 1


def test_a_made_picture_has_the_tiles_that_are_asked_for() -> None:
    (data,) = Workload(columns=3, rows=2).question(0, 112).images
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "JPEG"
        assert (picture.width // 112, picture.height // 112) == (3, 2)


def test_images_of_the_user_come_in_turn(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.jpg", "b.jpg")]
    for path in paths:
        path.write_bytes(path.name.encode())
    workload = Workload(images=tuple(paths))
    assert [workload.question(number, 112).images for number in range(3)] == [(b"a.jpg",), (b"b.jpg",), (b"a.jpg",)]


@pytest.mark.parametrize(("requests", "concurrency", "expected"), [(8, 4, 8), (8, 3, 9), (1, 8, 8), (5, 1, 5)])
def test_a_level_has_whole_turns(requests: int, concurrency: int, expected: int) -> None:
    assert Workload(requests=requests).count(concurrency) == expected


def test_a_round_has_its_warm_up_and_all_levels() -> None:
    assert Workload(requests=4, concurrencies=(8, 1, 1), warmup=3).per_round() == 3 + 4 + 8


@pytest.mark.parametrize("fields", [{"max_tokens": 1}, {"concurrencies": ()}, {"concurrencies": (0,)}, {"warmup": 0}])
def test_a_workload_that_measures_nothing_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Workload.model_validate(fields)

"""The questions and pictures of a verification."""

from __future__ import annotations

import numpy as np

from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.tokenizer import NvlmTokenizer
from nvlm_trt.verify.cases import Limits, make_cases, make_picture, prompt_faults

ROOMY = Limits(input_len=4096, images=4, tiles=6)


def test_cases_have_no_one_and_two_images_in_turn_and_every_kind_of_tag(
    opened: Checkpoint, tokenizer: NvlmTokenizer
) -> None:
    cases = make_cases(opened.config, tokenizer, ROOMY, 4)
    assert [len(case.pictures) for case in cases] == [0, 1, 2, 0]
    assert len(cases[0].tiles) == 0
    assert {count for case in cases for count in case.prompt.tiles} == {1, 3}
    assert all(len(case.tiles) == sum(case.prompt.tiles) for case in cases)


def test_images_that_do_not_fit_the_engine_are_left_out(opened: Checkpoint, tokenizer: NvlmTokenizer) -> None:
    one_image = make_cases(opened.config, tokenizer, Limits(4096, 1, 6), 3)
    assert [len(case.pictures) for case in one_image] == [0, 1, 1]
    _, text_only = make_cases(opened.config, tokenizer, Limits(4096, 0, 6), 2)
    exactly_that = Limits(len(text_only.prompt.input_ids), 4, 6)
    assert len(make_cases(opened.config, tokenizer, exactly_that, 2)[1].pictures) == 0
    assert make_cases(opened.config, tokenizer, Limits(5, 4, 6), 3) == []


def test_pictures_are_the_same_on_every_machine_and_have_contrast_at_every_scale() -> None:
    picture = np.asarray(make_picture(120, 90, seed=1))
    assert picture.shape == (90, 120, 3)
    assert np.array_equal(picture, np.asarray(make_picture(120, 90, seed=1)))
    assert not np.array_equal(picture, np.asarray(make_picture(120, 90, seed=2)))
    assert picture.std() > 30
    assert np.abs(np.diff(picture.astype(int), axis=1)).max() > 50


def test_an_exact_tokenizer_has_no_fault_and_an_inexact_one_is_told(
    opened: Checkpoint, tokenizer: NvlmTokenizer
) -> None:
    cases = make_cases(opened.config, tokenizer, ROOMY, 3)
    assert prompt_faults(opened.config, tokenizer, cases) == []

    class Lowercase(NvlmTokenizer):
        def encode_text(self, text: str) -> list[int]:
            return tokenizer.encode_text(text.lower())

    wrong = Lowercase(tokenizer._bpe, tokenizer._specials)
    assert "'What is written on the sign?' is not what its tokens decode to" in prompt_faults(
        opened.config, wrong, cases
    )

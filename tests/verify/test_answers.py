"""Canaries and logits on prompts with images: random weights pass, an engine that does not see its image fails."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from nvlm_trt.emulation.vision import VisionArithmetic
from nvlm_trt.errors import EngineError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.decoder import DecoderReference
from nvlm_trt.model.tokenizer import NvlmTokenizer
from nvlm_trt.recipe import parse_recipe
from nvlm_trt.verify.answers import Canary, ImageQuestion, Tables, canary_figures, judge_answers
from nvlm_trt.verify.cases import Limits
from nvlm_trt.verify.gates import answer_gates, judge_parts
from nvlm_trt.verify.golden import make_goldens
from nvlm_trt.verify.shown import Shown, right_tables, show
from nvlm_trt.verify.subjects import Forced, ReferenceSubject, Subject

LIMITS = Limits(512, 2, 6)


@dataclass(frozen=True)
class Asked:
    reference: ReferenceSubject
    questions: list[ImageQuestion]


@pytest.fixture(scope="module")
def shown(opened: Checkpoint, tokenizer: NvlmTokenizer) -> Shown:
    return show(opened.config, tokenizer, LIMITS, 3)


@pytest.fixture(scope="module")
def asked(opened: Checkpoint, tokenizer: NvlmTokenizer, shown: Shown) -> Asked:
    decoder = DecoderReference(opened)
    tables = shown.tables(VisionArithmetic(opened, "fp32").tables, control=False)
    goldens = make_goldens(decoder, shown.everything, right_tables(tables), 6)
    return Asked(ReferenceSubject(decoder), shown.questions(goldens, tokenizer.eos_id, tables, tables))


def failed(subject: Subject, asked: Asked) -> set[tuple[str, str]]:
    """Gates that do not pass in bf16."""
    figures, _ = judge_answers(subject, asked.reference, asked.questions)
    recipe = parse_recipe({"name": "x", "target": "cpu", "decoder_precision": "bf16"}, "x")
    checks = judge_parts(answer_gates(recipe), figures, recipe.gates, without=("task",))
    return {(check.part, check.gate.figure) for check in checks if not check.ok}


@dataclass(frozen=True)
class Blind:
    """A decoder that is given another image's table, always the same one."""

    inner: ReferenceSubject
    table: np.ndarray

    def logits(self, requests: Sequence[Forced]) -> list[torch.Tensor]:
        return self.inner.logits([Forced(each.ids, self.table[: len(each.table)], each.answer) for each in requests])


@dataclass
class Moody:
    """A decoder that says something else each time."""

    inner: ReferenceSubject

    def logits(self, requests: Sequence[Forced]) -> list[torch.Tensor]:
        noise = torch.Generator().manual_seed(3)
        return [logits + torch.randn(logits.shape, generator=noise) for logits in self.inner.logits(requests)]


def test_the_reference_itself_passes_although_its_weights_are_random(asked: Asked) -> None:
    assert failed(asked.reference, asked) == set()
    figures, _ = judge_answers(asked.reference, asked.reference, asked.questions)
    assert figures["canary"]["response"] == 1.0
    assert figures["canary"]["control"] == 0.0
    assert figures["canary"]["canaries"] == 2
    assert figures["logits"]["mean_kl_divergence"] == 0.0


def test_bfloat16_passes_too(opened: Checkpoint, asked: Asked) -> None:
    rounded = ReferenceSubject(DecoderReference(opened, torch.bfloat16))
    assert failed(rounded, asked) == set()
    figures, _ = judge_answers(rounded, asked.reference, asked.questions)
    assert figures["logits"]["mean_kl_divergence"] > 0


def test_an_engine_that_does_not_see_its_image_fails(asked: Asked) -> None:
    table = max((each.by_reference.swapped for each in asked.questions), key=len)
    found = failed(Blind(asked.reference, table), asked)
    assert ("canary", "response") in found
    assert ("logits", "mean_kl_divergence") in found


def test_an_engine_that_answers_the_same_question_in_two_ways_fails(asked: Asked) -> None:
    assert ("canary", "control") in failed(Moody(asked.reference), asked)


def test_a_clear_answer_that_stays_when_the_image_is_swapped_fails() -> None:
    red, blue = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[0.0, 9.0, 0.0]])
    stubborn = torch.tensor([[9.0, 8.0, 0.0]])  # it moves, as far as the reference does, and still says red
    figures, remarks = canary_figures([Canary(red, blue, red, red, blue), Canary(red, blue, red, red, stubborn)])
    assert (figures["answers_asked"], figures["answers_unchanged"]) == (2, 1)
    assert remarks == []


def test_what_is_not_a_number_never_passes() -> None:
    red, blue = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 9.0]])
    sound, broken = Canary(red, blue, red, red, blue), Canary(red, blue, red, red * math.nan, blue * math.nan)
    for canaries in ([sound, broken], [broken, sound]):
        figures, _ = canary_figures(canaries)
        assert math.isnan(figures["response"])
        assert math.isnan(figures["control"])


def test_a_reference_that_is_blind_itself_asks_nothing() -> None:
    red, blue = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 9.0]])
    figures, remarks = canary_figures([Canary(red, red, red, red, blue)])
    assert figures["canaries"] == 0
    assert remarks[0] == "Of 1 canaries 1 say nothing to the reference either."


def test_swapped_images_fit_the_same_prompt_and_are_other_images(shown: Shown) -> None:
    for case, swapped in zip(shown.everything, shown.swapped, strict=True):
        assert swapped.shape == case.tiles.shape
        assert not len(swapped) or np.abs(swapped.astype(int) - case.tiles).mean() > 20


def test_where_no_case_has_an_image_one_more_is_shown(opened: Checkpoint, tokenizer: NvlmTokenizer) -> None:
    alone = show(opened.config, tokenizer, LIMITS, 1)
    assert [len(case.pictures) for case in alone.everything] == [0, 1]


def test_an_engine_without_room_for_an_image_cannot_be_judged(opened: Checkpoint, tokenizer: NvlmTokenizer) -> None:
    with pytest.raises(EngineError, match=r"seen: 40 tokens of a prompt; expected: at least 64.*raise max_input_len"):
        show(opened.config, tokenizer, Limits(40, 2, 6), 1)


def test_tables_are_those_of_the_tiles_in_order(opened: Checkpoint, shown: Shown) -> None:
    encoded = VisionArithmetic(opened, "fp32").tables
    tables = shown.tables(encoded, control=True)
    assert tables[0] is None
    last = tables[-1]
    assert isinstance(last, Tables)
    (right,), (swapped,) = encoded([shown.everything[-1].tiles]), encoded([shown.swapped[-1]])
    np.testing.assert_array_equal(last.right, right)
    np.testing.assert_array_equal(last.again, right)
    np.testing.assert_array_equal(last.swapped, swapped)


def test_an_emulated_vision_encoder_with_all_weights_in_memory_gives_the_same_rows(
    opened: Checkpoint, shown: Shown, tiny_checkpoint: Path
) -> None:
    tiles = shown.everything[1].tiles
    vision = VisionArithmetic(opened, "bf16")
    (streamed,) = vision.tables([tiles])
    assert streamed is not None
    rows = torch.cat([vision.encoder()(tile[np.newaxis]).float() for tile in tiles])
    np.testing.assert_array_equal(streamed, rows.flatten(0, 1).numpy())

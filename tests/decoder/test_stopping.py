"""Text of an answer in pieces: the joined pieces are the whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvlm_trt.decoder.stopping import AnswerText, StopTexts, Strip, answer_text
from nvlm_trt.model.tokenizer import NvlmTokenizer


@pytest.fixture(scope="module")
def tokenizer(decoder_checkpoint: Path) -> NvlmTokenizer:
    return NvlmTokenizer.load(decoder_checkpoint)


def pushed(stops: tuple[str, ...], pieces: list[str]) -> tuple[str, bool]:
    finder = StopTexts(stops)
    text = "".join(finder.push(piece) for piece in pieces) + finder.flush()
    return text, finder.stopped


def before_first_stop(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """By definition: grow the text a character at a time until it ends in a stop text."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@given(
    pieces=st.lists(st.text("abc", max_size=4), max_size=12),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3).map(tuple),
)
def test_stop_texts_are_found_however_the_text_is_cut(pieces: list[str], stops: tuple[str, ...]):
    assert pushed(stops, pieces) == before_first_stop("".join(pieces), stops)


def test_nothing_of_a_stop_text_is_ever_emitted():
    finder = StopTexts(("STOP",))
    assert [finder.push(piece) for piece in ("go S", "TO", "ny ST", "OP it")] == ["go ", "", "STOny ", ""]
    assert finder.stopped
    assert finder.push("more") == finder.flush() == ""


@given(st.lists(st.text(" \n\tab ", max_size=4), max_size=12))
def test_strip_in_pieces_is_strip_of_the_whole(pieces: list[str]):
    strip = Strip()
    assert "".join(strip.push(piece) for piece in pieces) == "".join(pieces).strip()


@pytest.mark.parametrize("text", ["  Ein Büro 🙂 \n", "汉字 und\n\n mehr   ", "   ", "", "plain"])
def test_an_answer_in_tokens_is_the_stripped_text(tokenizer: NvlmTokenizer, text: str):
    ids = tokenizer.encode_text(text)
    answer = AnswerText(tokenizer)
    pieces = [answer.push([index]) for index in ids] + [answer.flush()]
    assert "".join(pieces) == text.strip() == answer_text(tokenizer, ids)
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)


def test_a_stop_text_across_tokens_ends_the_answer(tokenizer: NvlmTokenizer):
    ids = tokenizer.encode_text("The cat. Question: what else?")
    answer = AnswerText(tokenizer, ("Question:",))
    seen, waiting = "", list(ids)
    while not answer.stopped:
        seen += answer.push([waiting.pop(0)])
    assert seen + answer.flush() == "The cat."
    assert waiting


def test_the_end_of_turn_spelt_out_ends_the_answer_as_in_the_release(tokenizer: NvlmTokenizer):
    ids = tokenizer.encode_text("A dog.<|im_end|> And more")
    assert answer_text(tokenizer, ids) == "A dog."


def test_special_tokens_give_no_text(tokenizer: NvlmTokenizer):
    ids = [*tokenizer.encode_text("a"), tokenizer.eos_id, tokenizer.vision_pad_id, *tokenizer.encode_text("b")]
    assert answer_text(tokenizer, ids) == "ab"


def test_a_character_cut_short_is_one_replacement_character(tokenizer: NvlmTokenizer):
    ids = next(ids for ids in [tokenizer.encode_text("𒀀")] if len(ids) > 1)[:-1]
    assert answer_text(tokenizer, ids) == tokenizer.decode(ids).strip()

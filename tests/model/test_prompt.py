"""The prompt is the released chat()'s, id for id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvlm_trt.errors import PromptError
from nvlm_trt.model.prompt import build_prompt
from nvlm_trt.model.tokenizer import NvlmTokenizer

PAD = 151654
HEAD = [151644, 8948, 198, 16141, 279, 4755, 13, 151645, 151644, 872, 198]
QUESTION = [522, 1906, 397, 5501, 7512, 279, 2168, 19620, 13, 151645, 151644, 77091, 198]
ASK = "<image>\nPlease describe the image shortly."


@pytest.fixture(scope="module")
def qwen(nvlm_72b: Path) -> NvlmTokenizer:
    return NvlmTokenizer.load(nvlm_72b)


@pytest.fixture(scope="module")
def mini(tiny_checkpoint: Path) -> NvlmTokenizer:
    return NvlmTokenizer.load(tiny_checkpoint)


def collapsed(ids: tuple[int, ...]) -> list[int | str]:
    """Ids with each run of 256 visual positions written as one word."""
    out: list[int | str] = []
    for index in ids:
        out.append(index)
        if out[-256:] == [PAD] * 256:
            out[-256:] = ["tile"]
    return out


def test_golden_one_tile(qwen: NvlmTokenizer) -> None:
    prompt = build_prompt(qwen, 256, ASK, tiles=[1])
    assert len(prompt.input_ids) == 286
    assert collapsed(prompt.input_ids) == [*HEAD, 46465, 1784, 21094, 19296, 37824, 29, "tile", *QUESTION]


def test_golden_three_tiles(qwen: NvlmTokenizer) -> None:
    prompt = build_prompt(qwen, 256, ASK, tiles=[3])
    assert len(prompt.input_ids) == 808
    image = [46465, 1784, 21094, 62, 16, 29, "tile", 27, 21094, 62, 17, 29, "tile", 27, 21094, 19296, 37824, 29, "tile"]
    assert collapsed(prompt.input_ids) == [*HEAD, *image, *QUESTION]


@pytest.mark.parametrize(("tiles", "length"), [(7, 1852), (8, 2113), (11, 2897), (13, 3421)])
def test_golden_lengths(qwen: NvlmTokenizer, tiles: int, length: int) -> None:
    prompt = build_prompt(qwen, 256, ASK, tiles=[tiles])
    assert len(prompt.input_ids) == length
    assert prompt.num_visual_tokens == 256 * tiles


def test_golden_text_only(qwen: NvlmTokenizer) -> None:
    prompt = build_prompt(qwen, 256, "Hello, who are you?")
    assert list(prompt.input_ids) == [*HEAD, 9707, 11, 879, 525, 498, 30, 151645, 151644, 77091, 198]
    assert prompt.text == (
        "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\nHello, who are you?<|im_end|>"
        "<|im_start|>assistant\n"
    )


def test_golden_system_messages(qwen: NvlmTokenizer) -> None:
    system = "Follow the user's instruction and answer questions."
    ids = build_prompt(qwen, 256, "Hi", system=system).input_ids
    assert ids[:13] == (151644, 8948, 198, 12480, 279, 1196, 594, 7600, 323, 4226, 4755, 13, 151645)


def test_text_merges_across_the_image_tag_on_the_left_and_on_the_right(qwen: NvlmTokenizer) -> None:
    left = collapsed(build_prompt(qwen, 256, "Look: <image>", tiles=[1]).input_ids)
    assert left[left.index(366) : left.index(366) + 3] == [366, 1906, 1784]
    glued = collapsed(build_prompt(qwen, 256, "(<image>", tiles=[1]).input_ids)
    assert glued[len(HEAD) : len(HEAD) + 3] == [22726, 1906, 1784]
    right = collapsed(build_prompt(qwen, 256, "<image>Describe", tiles=[1]).input_ids)
    assert right[right.index("tile") + 1 : right.index("tile") + 4] == [522, 1906, 29]


def test_two_adjacent_images_merge_their_tags(qwen: NvlmTokenizer) -> None:
    ids = collapsed(build_prompt(qwen, 256, "<image><image>", tiles=[1, 1]).input_ids)
    assert ids.count(1784) == 3


def test_tokenising_piece_by_piece_would_be_wrong(qwen: NvlmTokenizer) -> None:
    whole = qwen.encode_text("<Image><tile_1>")
    assert whole == [46465, 1784, 21094, 62, 16, 29]
    assert whole != qwen.encode_text("<Image>") + qwen.encode_text("<tile_1>")


def test_history_has_no_newline_between_turns(qwen: NvlmTokenizer) -> None:
    prompt = build_prompt(qwen, 256, "And now?", history=[("Hi", "Hello.")])
    assert "user\nHi<|im_end|><|im_start|>assistant\nHello.<|im_end|><|im_start|>user\nAnd now?" in prompt.text


def test_an_image_of_an_earlier_turn_is_expanded_where_it_stood(mini: NvlmTokenizer) -> None:
    prompt = build_prompt(mini, 16, "And its colour?", tiles=[1], history=[("<image>\nWhat is it?", "A cat.")])
    assert prompt.text.index("<Image>") < prompt.text.index("What is it?")
    assert prompt.num_visual_tokens == 16


def test_images_without_a_placeholder_are_put_in_front_of_the_question(mini: NvlmTokenizer) -> None:
    assert build_prompt(mini, 16, "Why?", tiles=[1]) == build_prompt(mini, 16, "<image>\nWhy?", tiles=[1])
    two = build_prompt(mini, 16, "Why?", tiles=[1, 3])
    assert two == build_prompt(mini, 16, "<image>\n<image>\nWhy?", tiles=[1, 3])


def test_each_placeholder_takes_the_next_image(mini: NvlmTokenizer) -> None:
    prompt = build_prompt(mini, 16, "First <image>, second <image>.", tiles=[1, 3])
    first, second = prompt.text.split("second")
    assert first.count("<|vision_pad|>") == 16
    assert second.count("<|vision_pad|>") == 48
    assert prompt.tiles == (1, 3)


def test_more_images_than_placeholders_are_refused_with_both_counts(mini: NvlmTokenizer) -> None:
    with pytest.raises(PromptError, match="2 images, 1 placeholders"):
        build_prompt(mini, 16, "Only <image>", tiles=[1, 1])


@pytest.mark.parametrize(
    "said",
    [
        {"question": "half \ud800"},
        {"question": "Why?", "history": [("Why?", "\udcff")]},  # as Python has an argument that is no UTF-8
        {"question": "Why?", "system": "\udfff"},
    ],
)
def test_half_a_surrogate_pair_is_refused(mini: NvlmTokenizer, said: dict[str, Any]) -> None:
    with pytest.raises(PromptError, match="the prompt holds half a surrogate pair, or bytes that are no UTF-8"):
        build_prompt(mini, 256, **said)


def test_a_placeholder_without_an_image_stays_text_as_in_the_release(mini: NvlmTokenizer) -> None:
    assert "<image> and <image>" in build_prompt(mini, 16, "<image> and <image>").text
    assert build_prompt(mini, 16, "<image> and <image>", tiles=[1]).text.count("<image>") == 1


@pytest.mark.parametrize("token", ["<|vision_pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"])
@pytest.mark.parametrize("where", ["question", "system", "old question", "old answer"])
def test_a_special_token_typed_by_a_user_stays_text(mini: NvlmTokenizer, token: str, where: str) -> None:
    said = dict.fromkeys(("question", "system", "old question", "old answer"), "plain")

    def special_ids(texts: dict[str, str]) -> list[int]:
        history = [(texts["old question"], texts["old answer"])]
        prompt = build_prompt(mini, 16, texts["question"], tiles=[1], history=history, system=texts["system"])
        assert len(prompt.visual_positions) == 16
        return [index for index in prompt.input_ids if index in mini.special_ids]

    assert special_ids(said | {where: f"see {token} here"}) == special_ids(said)


def test_an_empty_question_has_no_separator_as_in_the_release(mini: NvlmTokenizer) -> None:
    assert build_prompt(mini, 16, "").text.endswith("<|im_start|>user\n<|im_start|>assistant\n")


def test_the_decoder_takes_consecutive_rows_of_the_prompt_table(mini: NvlmTokenizer) -> None:
    prompt = build_prompt(mini, 16, "<image> or <image>", tiles=[1, 3])
    ids = prompt.decoder_ids(1000)
    assert ids.dtype == np.int32
    assert ids[ids >= 1000].tolist() == list(range(1000, 1000 + 64))
    text = [index for index in prompt.input_ids if index != mini.vision_pad_id]
    assert ids[ids < 1000].tolist() == text


def test_the_text_of_an_image_is_its_tags_and_visual_tokens(mini: NvlmTokenizer) -> None:
    image = "<Image><tile_global_thumbnail><|vision_pad|><|vision_pad|></Image>"
    assert f"user\n{image}\nWhy?<|im_end|>" in build_prompt(mini, 2, "Why?", tiles=[1]).text


def test_the_tokenizer_is_asked_for_no_empty_stretch_between_visual_tokens(
    mini: NvlmTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    encode_text = NvlmTokenizer.encode_text

    def watched(self: NvlmTokenizer, text: str, **options: Any) -> list[int]:
        asked.append(text)
        return encode_text(self, text, **options)

    monkeypatch.setattr(NvlmTokenizer, "encode_text", watched)
    prompt = build_prompt(mini, 16, "What?", tiles=[2])
    assert prompt.num_visual_tokens == 32
    assert "" not in asked
    assert "".join(asked).count("What?") == 1

"""Text becomes Qwen2's ids and comes back, whole or token by token."""

from __future__ import annotations

import json
import random
import shutil
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvlm_trt.errors import CheckpointError
from nvlm_trt.model.detokenizer import IncrementalDetokenizer
from nvlm_trt.model.mini_tokenizer import mini_merges, tokenizer_size, write_tokenizer
from nvlm_trt.model.tokenizer import BREAK, STRETCH, NvlmTokenizer, _stretches


@pytest.fixture(scope="module")
def mini(tiny_checkpoint: Path) -> NvlmTokenizer:
    return NvlmTokenizer.load(tiny_checkpoint)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path, mini_merges())
    return tmp_path


def test_the_released_tokenizer_gives_the_known_ids(nvlm_72b: Path) -> None:
    qwen = NvlmTokenizer.load(nvlm_72b)
    assert (qwen.start_of_turn_id, qwen.eos_id, qwen.vision_pad_id) == (151644, 151645, 151654)
    assert qwen.encode_text("Hello, who are you?") == [9707, 11, 879, 525, 498, 30]
    assert qwen.encode_text("<tile_global_thumbnail>") == [27, 21094, 19296, 37824, 29]
    assert qwen.encode_text("<tile_10>") == [27, 21094, 62, 16, 15, 29]
    assert qwen.encode_text("</Image>\n\n") == [522, 1906, 1339]
    assert qwen.encode_text("<tool_call>") == [151657]
    assert qwen.decode([9707, 151645, 11]) == "Hello,"


@given(st.text())
@settings(max_examples=200)
def test_any_text_survives_the_round_trip_up_to_normalisation(mini: NvlmTokenizer, text: str) -> None:
    assert mini.decode(mini.encode_text(text)) == unicodedata.normalize("NFC", text)


@given(st.text(alphabet=st.sampled_from("<|im_end|>vision_pad start \n")))
@settings(max_examples=200)
def test_no_text_becomes_a_special_token(mini: NvlmTokenizer, text: str) -> None:
    assert not mini.special_ids.intersection(mini.encode_text(text + "<|im_end|><|vision_pad|>" + text))


@given(st.lists(st.integers(0, tokenizer_size(mini_merges()) + 20), max_size=40), st.integers(1, 7))
@settings(max_examples=300)
def test_joined_pieces_equal_the_whole_whatever_the_ids(mini: NvlmTokenizer, ids: list[int], step: int) -> None:
    detokenizer = IncrementalDetokenizer(mini)
    pieces = [detokenizer.push(ids[start : start + step]) for start in range(0, len(ids), step)]
    assert "".join(pieces) + detokenizer.flush() == mini.decode(ids)


def test_a_character_of_several_tokens_comes_whole(mini: NvlmTokenizer) -> None:
    detokenizer = IncrementalDetokenizer(mini)
    ids = mini.encode_text("é€🚀")
    assert len(ids) == 9
    assert [piece for piece in (detokenizer.push([index]) for index in ids) if piece] == ["é", "€", "🚀"]


def test_decoding_may_show_special_tokens(mini: NvlmTokenizer) -> None:
    ids = [*mini.encode_text("a"), mini.eos_id]
    assert mini.decode(ids) == "a"
    assert mini.decode(ids, skip_special_tokens=False) == "a<|im_end|>"


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json"])
def test_a_missing_file_is_named(files: Path, name: str) -> None:
    (files / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        NvlmTokenizer.load(files)


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer_config.json"])
def test_a_damaged_file_is_one_clear_error(files: Path, name: str) -> None:
    (files / name).write_text("{]")
    with pytest.raises(CheckpointError, match="cannot be read"):
        NvlmTokenizer.load(files)


def test_a_merge_outside_the_vocabulary_is_refused(files: Path) -> None:
    with (files / "merges.txt").open("a") as merges:
        merges.write("nope nada\n")
    with pytest.raises(CheckpointError, match="cannot be read"):
        NvlmTokenizer.load(files)


def test_a_tokenizer_without_the_image_token_is_refused(files: Path) -> None:
    settings_file = files / "tokenizer_config.json"
    raw = json.loads(settings_file.read_text())
    raw["added_tokens_decoder"] = {
        index: token for index, token in raw["added_tokens_decoder"].items() if token["content"] != "<|vision_pad|>"
    }
    settings_file.write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="vision_pad"):
        NvlmTokenizer.load(files)


def test_added_tokens_keep_their_ids_across_a_gap(files: Path, tmp_path: Path) -> None:
    settings_file = files / "tokenizer_config.json"
    raw = json.loads(settings_file.read_text())
    raw["added_tokens_decoder"] = {str(int(i) + 1000): token for i, token in raw["added_tokens_decoder"].items()}
    moved = shutil.copytree(files, tmp_path / "moved", ignore=shutil.ignore_patterns("moved"))
    (moved / "tokenizer_config.json").write_text(json.dumps(raw))
    assert NvlmTokenizer.load(moved).eos_id == NvlmTokenizer.load(files).eos_id + 1000


def test_an_unknown_special_token_is_an_error(mini: NvlmTokenizer) -> None:
    with pytest.raises(CheckpointError, match="no such special token"):
        mini.special_id("<|nothing|>")


UNITS = [*"ae1é½.' \n\t漢。かカ가🚀", *"\u0301\u0338\u0323\u3099\u11a8\u0663\uff0c"]
UNITS += ["Bc", "  ", "\r\n", "23", "'s", "-!", "<tool_call>", "_|>", "字典", "👩\u200d🚀"]
PROSE = st.lists(st.sampled_from(UNITS), max_size=60)


@given(PROSE.map("".join))
@settings(max_examples=300)
def test_a_long_text_that_is_cut_gives_the_ids_of_the_whole(mini: NvlmTokenizer, text: str) -> None:
    assert_cut_anywhere(mini, text)


def test_so_it_does_with_the_released_tokenizer(nvlm_72b: Path) -> None:
    qwen, chance = NvlmTokenizer.load(nvlm_72b), random.Random(1)
    for text in ("it's a photo of   two cats\nand one dog .\n\n b c", "fiancé e\u0301 a b\r\nc  d e", "a 1 b c\td e f"):
        assert_cut_anywhere(qwen, text)
    for _ in range(300):
        assert_cut_anywhere(qwen, "".join(chance.choices(UNITS, k=30)))


def assert_cut_anywhere(tokenizer: NvlmTokenizer, text: str) -> None:
    """At every place at which a long text may be cut."""
    whole = tokenizer.encode_text(text)
    for place in BREAK.finditer(text):
        pieces = text[: place.start()], text[place.start() :]
        assert [index for piece in pieces for index in tokenizer.encode_text(piece)] == whole


@given(PROSE.map("".join), st.integers(1, 20))
@settings(max_examples=300)
def test_a_part_of_a_text_counts_for_no_more_ids_than_it_has(mini: NvlmTokenizer, text: str, times: int) -> None:
    assert_counts_for_no_more(mini, text * times)


def test_so_does_one_of_the_released_tokenizer(nvlm_72b: Path) -> None:
    qwen, chance = NvlmTokenizer.load(nvlm_72b), random.Random(1)
    for _ in range(300):
        assert_counts_for_no_more(qwen, "".join(chance.choices(UNITS, k=30)) * chance.randint(1, 20))
    for unit in (" ", "-", "\n", "=-", " hello", "的中国人"):
        assert_counts_for_no_more(qwen, unit * 300)


def assert_counts_for_no_more(tokenizer: NvlmTokenizer, text: str) -> None:
    normal = unicodedata.normalize("NFC", text)
    assert tokenizer._least_ids(normal) <= len(tokenizer.encode_text(text)) + 1e-6


@pytest.mark.parametrize("unit", ["1", "word1,", "漢字。", "it's;"])
def test_digits_and_short_words_are_tokenised_a_stretch_at_a_time(unit: str) -> None:
    text = unit * (10 * STRETCH // len(unit))
    assert max(map(len, _stretches(text))) < STRETCH + 10


ONE_STRETCH = pytest.mark.parametrize("unit", ["漢", "🚀", "!?.,;:", "é", "e\u0301", "の", "\u0663"])


@ONE_STRETCH
def test_of_one_stretch_beyond_the_room_little_is_tokenised(mini: NvlmTokenizer, unit: str) -> None:
    assert_little_is_tokenised(mini, unit, 30_000)


@ONE_STRETCH
def test_so_it_is_with_the_released_tokenizer(nvlm_72b: Path, unit: str) -> None:
    assert_little_is_tokenised(NvlmTokenizer.load(nvlm_72b), unit, 16_384)


def assert_little_is_tokenised(tokenizer: NvlmTokenizer, unit: str, at_most: int) -> None:
    beginning = tokenizer._beginning(unit * (3_000_000 // len(unit)), at_most)
    assert len(beginning) <= 3 * STRETCH
    assert len(tokenizer.encode_text(beginning)) > at_most


@pytest.mark.parametrize("unit", ["漢", "🚀 ", "!?", "e\u0301", " ", "123"])
def test_a_long_text_that_fits_has_the_ids_of_the_whole(mini: NvlmTokenizer, unit: str) -> None:
    text = unit * (3 * STRETCH // len(unit))
    whole = mini._bpe.encode(text, add_special_tokens=False).ids
    assert mini.encode_text(text, at_most=len(whole)) == whole
    assert len(mini.encode_text(text, at_most=len(whole) - 1)) > len(whole) - 1


@pytest.mark.parametrize("unit", ["word ", "x", " ", "one\n"])
def test_of_a_text_beyond_the_room_no_more_is_counted_than_shows_it(mini: NvlmTokenizer, unit: str) -> None:
    text = unit * (2_000_000 // len(unit))
    ids = mini.encode_text(text, at_most=100)
    assert 100 < len(ids) < 100_000
    assert mini.encode_text(text[:9000], at_most=9000) == mini.encode_text(text[:9000])

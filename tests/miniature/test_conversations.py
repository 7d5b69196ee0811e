"""Training sequences: the engines' template, answers marked token by token, batches that can be entered anywhere."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from nvlm_trt.miniature.conversations import batches, tokenise
from nvlm_trt.miniature.scenes import arithmetic, compare, objects
from nvlm_trt.miniature.vocabulary import learn_merges
from nvlm_trt.model.config import NvlmConfig
from nvlm_trt.model.mini_tokenizer import write_tokenizer
from nvlm_trt.model.synthetic import tiny_spec
from nvlm_trt.model.tokenizer import NvlmTokenizer


@pytest.fixture(scope="module")
def config() -> NvlmConfig:
    return tiny_spec(tile_size=112, vocab_size=640).config


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> NvlmTokenizer:
    directory: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory, learn_merges(700))
    return NvlmTokenizer.load(directory)


@pytest.mark.parametrize("scene", [objects, compare, arithmetic])
def test_the_marked_tokens_are_the_answers_and_their_ends(scene, config: NvlmConfig, tokenizer: NvlmTokenizer) -> None:
    for seed in range(8):
        example = scene(np.random.default_rng(seed), "train", 112)
        conversation = tokenise(example, tokenizer, config)
        marked = conversation.ids[conversation.answers].tolist()
        expected = [
            token for turn in example.turns for token in (*tokenizer.encode_text(turn.answer), tokenizer.eos_id)
        ]
        assert marked == expected


def test_every_visual_token_has_a_row_of_its_own(config: NvlmConfig, tokenizer: NvlmTokenizer) -> None:
    conversation = tokenise(compare(np.random.default_rng(1), "train", 112), tokenizer, config)
    rows = conversation.ids[conversation.ids >= config.decoder.vocab_size] - config.decoder.vocab_size
    assert rows.tolist() == list(range(len(conversation.tiles) * config.tokens_per_tile))
    assert len(conversation.tiles) == 2


def test_a_stream_of_batches_can_be_entered_anywhere(config: NvlmConfig, tokenizer: NvlmTokenizer) -> None:
    def stream(first: int) -> list[list[int]]:
        found = batches(3, first, size=2, split="train", tokenizer=tokenizer, config=config)
        return [batch[0].ids.tolist() for batch in itertools.islice(found, 7 - first)]

    whole = stream(0)
    assert stream(2) == whole[2:]
    assert stream(5) == whole[5:]


def test_words_are_one_token_and_what_pictures_show_is_spelled(tokenizer: NvlmTokenizer) -> None:
    assert len(tokenizer.encode_text("triangle")) == 1
    assert len(tokenizer.encode_text("top left")) == 2
    assert len(tokenizer.encode_text("ZEBRA")) == 5
    assert len(tokenizer.encode_text("4071")) == 4
    assert len(tokenizer.encode_text("<tile_global_thumbnail>")) == 4

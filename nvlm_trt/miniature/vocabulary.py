"""The miniature's tokenizer: byte-level BPE like Qwen2's, learned on the project's questions.

Words of questions and answers become one token each; capitals and digits, which pictures show, stay single characters
(Qwen2's splits keep digits apart, and no capital word is in the corpus).
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from nvlm_trt.miniature.canvas import COLOURS, SHAPES
from nvlm_trt.miniature.questions import PLACES
from nvlm_trt.model.prompt import DEFAULT_SYSTEM
from nvlm_trt.model.tiling import tile_tags
from nvlm_trt.model.tokenizer import QWEN2_SPLIT

FRAMES = (
    "What colour is the {}?",
    "Which shape is {}? What is {}?",
    "Where is the {}? Where is it? What colour is it?",
    "What shape is at the {}?",
    "Which tile holds the {}? Which tile holds the tiny number? tile 1",
    "How many {}s are there? How many {} shapes are there? And how many shapes are there?",
    "How many {}es are there? How many bars are there?",
    "What number is shown? Read the number. Which number is written here?",
    "What word is shown? Read the word. What does the sign say?",
    "Is the word at the top or at the bottom? Is there a number or a word?",
    "What is the tiny number? Read the tiny number. Which tiny number is written here?",
    "What is the value of bar A? What is the value of the {} bar?",
    "Which bar is the highest? Which bar is the lowest? What colour is bar A?",
    "What number is in the first picture? What number is in the second picture?",
    "Which picture shows the larger number? Which picture has more shapes? first second",
    "Which picture shows a {}? In which picture is something {}? How many shapes are in the first picture?",
    "What is 1 plus 2? What is 2 minus 1? Repeat: ",
    "What is in this picture? Describe the image. Please describe the image shortly. Hello, who are you?",
    "The picture shows a {}. I do not know. yes no answer the question using a single word or phrase",
)


def corpus() -> Iterator[str]:
    """What merges are learned from."""
    fillers = [*SHAPES, *COLOURS, *PLACES, *(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)]
    for frame in FRAMES:
        for filler in fillers:
            yield frame.replace("{}", filler)
    for filler in (*SHAPES, *COLOURS, *PLACES, "first", "second", "tile", "number", "word"):
        yield from [filler] * 40
    for tags in map(tile_tags, range(1, 8)):
        yield from [
            "<Image>" + "".join(tags),
            *tags,
            "</Image>\n",
            "user\n",
            "assistant\n",
            f"system\n{DEFAULT_SYSTEM}",
        ] * 40


def learn_merges(count: int) -> str:
    """The text of merges.txt with at most `count` merges."""
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + count, initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    bpe.train_from_iterator(corpus(), trainer)
    merges: list[tuple[str, str]] = json.loads(bpe.to_str())["model"]["merges"]
    return "\n".join(["#version: 0.2", *(f"{left} {right}" for left, right in merges), ""])

"""What a free answer means: the letter of a choice, or the numbers and phrases of an open answer.

Source: parse_multi_choice_response, parse_open_response and eval_open of the MMMU evaluation (MMMU-Benchmark/MMMU) as
Megatron-LM has them in examples/multimodal/evaluation/mmmu_utils.py. Where nothing is found the first choice is taken;
MMMU itself draws one at random.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

_EDGES = ",.!?;:'"
"""Stripped from both ends one after the other, in this order: of "A.," only the comma goes before the full stop."""

_WORDS_OF_A_SENTENCE = 5
"""Above so many words an answer without a letter is searched for the texts of choices."""

_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
"""What an answer stands behind in a sentence; in the last line also an equals sign."""

_TRIVIAL = (":", ",", ".", "!", "?", ";", "'")

_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)
"""With commas between thousands, in scientific notation, plain."""

Value = str | float


def chosen_letter(answer: str, choices: Mapping[str, str]) -> str:
    """The letter that an answer names.

    "(A)" or "A)" anywhere; else " A " between spaces; else, in more than five words, the text of a choice; else the
    first choice. Of several the one that is named last.

    Args:
        answer: The model's text.
        choices: Texts by letter, in order; at least one.
    """
    for edge in _EDGES:
        answer = answer.strip(edge)
    answer = f" {answer} "
    if found := [letter for letter in choices if f"{letter})" in answer]:
        return max(found, key=lambda letter: answer.rfind(f"({letter})"))
    if found := [letter for letter in choices if f" {letter} " in answer]:
        return max(found, key=lambda letter: answer.rfind(f" {letter} "))
    lowered = answer.lower()
    if len(answer.split()) > _WORDS_OF_A_SENTENCE and (
        found := [letter for letter, text in choices.items() if text.lower() in lowered]
    ):
        return max(found, key=lambda letter: lowered.rfind(choices[letter].lower()))
    return next(iter(choices))


def unwrapped(answer: str) -> str:
    r"""What stands in ``\answer{}`` or ``\boxed{}``, else the whole; extract_answer of evaluate_mmmu.py."""
    for name in ("answer", "boxed"):
        if match := re.search(rf"\\{name}\{{(.*?)\}}", answer):
            return match.group(1)
    return answer.replace("Answer:", "Answer: ")


def open_answer_matches(answer: str, right: tuple[str, ...]) -> bool:
    """Whether an open answer says a right one: an equal number, or a phrase that contains a right text."""
    values = [value for text in right for value in _values(text)]
    for found in _open_values(answer):
        if isinstance(found, float):
            if found in values:
                return True
        elif any(isinstance(value, str) and value in found for value in values):
            return True
    return False


def _open_values(answer: str) -> Iterator[Value]:
    """Key phrases and the numbers in them."""
    phrases = list(_key_phrases(answer))
    numbers = [number for phrase in phrases for pattern in _NUMBERS for number in pattern.findall(phrase)]
    for text in [*phrases, *numbers]:
        yield from _values(text)


def _key_phrases(answer: str) -> Iterator[str]:
    """What follows a key word, line by line; the whole answer where no line has one.

    The source means to split sentences too, but looks for capitals after it has lowered them all.
    """
    whole = answer.strip().strip(".").lower()
    *lines, last = whole.split("\n")
    found = False
    for line, keys in [*((line, _KEYS) for line in lines), (last, (*_KEYS, "="))]:
        shortest = ""
        for key in keys:
            tail = line.split(key)[-1].strip()
            if key in line and (not shortest or len(tail) < len(shortest)):
                shortest = tail
        if shortest and shortest not in _TRIVIAL:
            found = True
            yield shortest
    if not found:
        yield whole


def _values(text: str) -> tuple[Value, ...]:
    """A number of two decimals, or lower-cased text; a single letter only beside a space."""
    text = text.strip()
    try:
        return (round(float(text.replace(",", "")), 2),)
    except ValueError:
        text = text.lower()
        return (f" {text}", f"{text} ") if len(text) == 1 else (text,)

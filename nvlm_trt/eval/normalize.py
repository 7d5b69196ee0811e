"""The normalisation of short answers that VQA accuracy, relaxed accuracy, ANLS and exact match begin with.

Source: processPunctuation and processDigitArticle of open_flamingo's VQAEval (open_flamingo/eval/vqa_metric.py), after
the official VQA evaluation; evaluate_vqav2.py of Megatron-LM puts predictions and right answers through both. Scores
depend on its oddities, so they are kept:

* a punctuation mark that touches a space anywhere in the text is deleted everywhere, another one becomes a space; where
  a comma stands between digits, all marks of the whole text are deleted: "1,000" is "1000", "red/blue" is "red blue";
* the minus is such a mark: signs are not compared;
* a full stop that no digit follows is deleted, "3." is "3"; of these the first 32 only, because the source hands
  re.UNICODE (32) to the argument that counts;
* one contraction is written backwards: "somebody'd" loses its apostrophe.
"""

from __future__ import annotations

import re

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_STOP = re.compile(r"\.(?!\d)")
_STOPS_DELETED = 32

_ARTICLES = ("a", "an", "the")
_COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(value) for value, word in enumerate(_COUNTED)} | {"none": "0"}

_CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've"
    " he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't"
    " not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll"
    " somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd"
    " there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll"
    " what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's"
    " won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"
)

_MENDED = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTIONS.split()
    for place, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}
"""What a word that lacks one apostrophe becomes."""


def normalize(text: str) -> str:
    """Both steps, in the order of the source."""
    return strip_articles(strip_punctuation(text))


def strip_punctuation(text: str) -> str:
    """Delete punctuation marks, or put spaces in their place, and delete full stops (processPunctuation)."""
    in_number = _COMMA_IN_NUMBER.search(text) is not None
    stripped = text
    for mark in _MARKS:
        deleted = in_number or f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if deleted else " ")
    return _STOP.sub("", stripped, count=_STOPS_DELETED)


def strip_articles(text: str) -> str:
    """Lower-case; number words as digits, articles left out, lost apostrophes mended (processDigitArticle)."""
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_MENDED.get(word, word) for word in words if word not in _ARTICLES)

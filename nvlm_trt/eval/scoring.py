"""The metrics, each with its formula, as the evaluation released with NVLM scores (Megatron-LM, examples/multimodal).

A score is a share of one question, 0 to 1; only `substring` can give more. The score of a task is the mean.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Protocol

from nvlm_trt.eval.normalize import normalize
from nvlm_trt.eval.parsing import chosen_letter, open_answer_matches, unwrapped
from nvlm_trt.eval.tasks import LETTERS, Metric, Sample

ANLS_THRESHOLD = 0.5
"""Normalised distances from here on count as wrong."""


class Scorer(Protocol):
    """One metric."""

    def __call__(self, sample: Sample, answer: str) -> float:
        """The score of an answer."""


class Exact:
    """Strict exact match, this project's own.

    Formula: 1 if the answer, stripped and case-folded, equals one of the right answers so treated, else 0.
    """

    def __call__(self, sample: Sample, answer: str) -> float:
        """1 or 0."""
        said = answer.strip().casefold()
        return float(any(said == right.strip().casefold() for right in sample.answers))


class ExactMatch:
    """Exact match of AI2D and RealWorldQA.

    Formula: 1 if n(answer) = n(right answer), else 0; n is `normalize`. No letter is looked for in a longer answer.
    Source: evaluate_vqav2.py, tasks AI2D and RealworldQA.
    """

    def __call__(self, sample: Sample, answer: str) -> float:
        """1 or 0."""
        return float(normalize(answer) == normalize(sample.answers[0]))


class VqaAccuracy:
    """VQA accuracy of VQAv2 and TextVQA.

    Formula: min(1, matches / 3); matches are the right answers (ten people's) that equal the answer after `normalize`.
    The official evaluation averages this over the ten subsets of nine people; the released one does not.
    Source: evaluate_vqav2.py, tasks VQAv2 and TextVQA.
    """

    def __call__(self, sample: Sample, answer: str) -> float:
        """0, 1/3, 2/3 or 1."""
        said = normalize(answer)
        return min(1.0, sum(said == normalize(right) for right in sample.answers) / 3)


class RelaxedAccuracy:
    """Relaxed accuracy of ChartQA.

    Formula: a and r are answer and right answer after `normalize`, percent signs at their ends left out. Both numbers:
    1 if 0.95 r <= a <= 1.05 r; else 1 if a = r; else 0. Signs and slashes are gone before that, see `normalize`.
    Source: evaluate_vqav2.py, task ChartQA; arXiv 2203.10244, section 5.1.
    """

    def __call__(self, sample: Sample, answer: str) -> float:
        """1 or 0."""
        said, right = (normalize(text).rstrip("%") for text in (answer, sample.answers[0]))
        try:
            number, target = float(said), float(right)
        except ValueError:
            return float(said == right)
        return float(target * 0.95 <= number <= target * 1.05)


class Anls:
    """Average normalised Levenshtein similarity of DocVQA.

    Formula: the largest s over the right answers r, with d = Levenshtein(a, r) / max(length of a, of r), s = 1 - d if
    d < 0.5, else 0. Texts are put through `normalize`; white space is one space. Lengths are those of the upper-cased
    texts, as in the source. The official metric does not strip punctuation and articles.
    Source: evaluate_vqav2.py, task SPDocVQA; arXiv 1907.00490, equation 1.
    """

    def __call__(self, sample: Sample, answer: str) -> float:
        """0, or above 0.5 to 1."""
        said = normalize(answer)
        return max(_similarity(said, normalize(right)) for right in sample.answers)


class Substring:
    """Substring match of OCRBench.

    Formula: the number of right answers that the answer contains, both lower-cased, stripped, line ends as spaces. The
    released script does not stop at the first one, so several right answers can add several points.
    Source: evaluate_ocrbench.py.
    """

    def __call__(self, sample: Sample, answer: str) -> float:
        """0, 1 or more."""
        said = _in_one_line(answer.lower())
        return float(sum(_in_one_line(right.lower()) in said for right in sample.answers))


class SubstringFormula:
    """Substring match of OCRBench's HME100k, handwritten formulas.

    Formula: as `Substring`, but the case is kept and spaces are left out.
    Source: evaluate_ocrbench.py, dataset_name HME100k.
    """

    def __call__(self, sample: Sample, answer: str) -> float:
        """0, 1 or more."""
        said = _in_one_line(answer).replace(" ", "")
        return float(sum(_in_one_line(right).replace(" ", "") in said for right in sample.answers))


class MultipleChoice:
    r"""Multiple choice of MMMU.

    Formula: 1 if the letter that `chosen_letter` finds is a right one, else 0; what stands in ``\answer{}`` or
    ``\boxed{}`` goes first. An answer that names no choice counts as the first choice.
    Source: evaluate_mmmu.py and eval_multi_choice of mmmu_utils.py.
    """

    def __call__(self, sample: Sample, answer: str) -> float:
        """1 or 0."""
        return float(chosen_letter(unwrapped(answer), _by_letter(sample)) in sample.answers)


class OpenAnswer:
    """Open questions of MMMU.

    Formula: 1 if a number of the answer equals a right one (two decimals), or a key phrase contains a right text.
    Source: parse_open_response and eval_open of mmmu_utils.py.
    """

    def __call__(self, sample: Sample, answer: str) -> float:
        """1 or 0."""
        return float(open_answer_matches(answer, sample.answers))


class MathVista:
    """MathVista by rules, without a language model to extract answers.

    Formula: with choices, 1 if `chosen_letter` is the right one. Without, 1 if a = r: both after `normalize`, a bare
    decimal cut (not rounded) to two places, percent signs and a last full stop left out; of an answer with letters the
    number after the first "answer is" is taken, uncut.
    Source: evaluate_mathvista.py. (It fails on an answer of which nothing is left, which counts as wrong here.)
    """

    def __call__(self, sample: Sample, answer: str) -> float:
        """1 or 0."""
        if sample.choices:
            return float(chosen_letter(answer, _by_letter(sample)) == sample.answers[0])
        said = _after_answer_is(_cut_decimal(normalize(answer)))
        return float(said != "" and said == _cut_decimal(normalize(sample.answers[0])))


SCORERS: Final[Mapping[Metric, Scorer]] = {
    "exact": Exact(),
    "exact_match": ExactMatch(),
    "vqa_accuracy": VqaAccuracy(),
    "relaxed_accuracy": RelaxedAccuracy(),
    "anls": Anls(),
    "substring": Substring(),
    "substring_formula": SubstringFormula(),
    "multiple_choice": MultipleChoice(),
    "open_answer": OpenAnswer(),
    "mathvista": MathVista(),
}


def score(sample: Sample, answer: str) -> float:
    """The score of an answer by the sample's metric."""
    return SCORERS[sample.metric](sample, answer)


def _by_letter(sample: Sample) -> dict[str, str]:
    return dict(zip(LETTERS, sample.choices, strict=False))


def _in_one_line(text: str) -> str:
    return text.strip().replace("\n", " ")


def _similarity(said: str, right: str) -> float:
    longest = max(len(said.upper()), len(right.upper()))
    distance = _levenshtein(said, right) / longest if longest else 0.0
    return 1 - distance if distance < ANLS_THRESHOLD else 0.0


def _levenshtein(first: str, second: str) -> int:
    """Fewest insertions, deletions and replacements of letters that turn one text into the other."""
    row = list(range(len(first) + 1))
    for line, letter in enumerate(second, start=1):
        above = row
        row = [line]
        for place, other in enumerate(first, start=1):
            row.append(min(above[place] + 1, row[-1] + 1, above[place - 1] + (letter != other)))
    return row[-1]


def _cut_decimal(text: str) -> str:
    if match := re.fullmatch(r"(\d+)\.(\d+)", text):
        whole, places = match.groups()
        text = f"{whole}.{places[:2]}" if any(int(digit) for digit in places) else whole  # int() ends at 4300 digits
    return text.replace("%", "").removesuffix(".")


def _after_answer_is(text: str) -> str:
    if not re.search("[a-zA-Z]", text) or "e+" in text:
        return text
    found = re.search(r"answer is (-*\d+\.*\d*)", text)
    return found.group(1) if found else text

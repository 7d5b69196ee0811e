"""What the released evaluation asks, word for word (run_text_generation.py of Megatron-LM, examples/multimodal).

At the tag NVLM-1.0 every system message is the release's own, "Answer the questions."; DocVQA and RealWorldQA came
later, with a system message of their own. The image goes in front of all of them as ``<image>`` and a line end, which
`build_prompt` writes. The model card of nvidia/NVLM-D-72B names ``eval/full_eval.yaml`` beside the weights for the
prompts of its evaluation; that file was not at hand here, and may ask otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nvlm_trt.eval.tasks import LETTERS

LATER_SYSTEM: Final = "Follow the user's instruction and answer questions."
SHORT: Final = "\nAnswer the question using a single word or phrase."
SHORT_OR_NUMBER: Final = "\nAnswer the question using a single word, phrase, or number."
LETTER: Final = "Answer with the option's letter from the given choices directly."


def with_choices(question: str, choices: Sequence[str]) -> str:
    """A question, its choices "A. ...", one a line, and the instruction to answer by letter."""
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([question, *lines, LETTER])

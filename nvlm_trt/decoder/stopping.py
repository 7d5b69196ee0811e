"""Token ids to the text of an answer, piece by piece: whole characters, stop texts, stripped ends.

The released chat() decodes without special tokens, keeps what stands before the first ``<|im_end|>`` written as text,
and strips white space at both ends. `AnswerText` does the same incrementally: the joined pieces equal the whole.
Leading white space is dropped until the first other character; trailing white space and anything that could be the
beginning of a stop text are held back until what follows decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nvlm_trt.model.detokenizer import IncrementalDetokenizer
from nvlm_trt.model.tokenizer import END_OF_TURN, NvlmTokenizer


class StopTexts:
    """Finds the first stop text to be completed in a growing text, however the text is cut into pieces.

    Args:
        stops: The texts, none empty. Among those completed by the same character the longest counts.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """What is certain to stand before any stop text; nothing after one was found."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in self._stops if stop in text]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)[1]]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The end of the text, when no stop text will come."""
        held, self._held = self._held, ""
        return held


class Strip:
    """`str.strip` for a growing text."""

    def __init__(self) -> None:
        self._begun = False
        self._held = ""

    def push(self, piece: str) -> str:
        """The piece without leading white space of the whole, and without what may turn out to be trailing."""
        text = self._held + piece if self._begun else piece.lstrip()
        body = text.rstrip()
        self._begun = self._begun or bool(body)
        self._held = text[len(body) :]
        return body


class AnswerText:
    """The text of one answer.

    Args:
        tokenizer: The checkpoint's tokenizer.
        stop: The request's stop texts; ``<|im_end|>`` spelt out as text always is one, as in the released chat().
    """

    def __init__(self, tokenizer: NvlmTokenizer, stop: Sequence[str] = ()) -> None:
        self._characters = IncrementalDetokenizer(tokenizer)
        self._stops = StopTexts((*stop, END_OF_TURN))
        self._strip = Strip()

    @property
    def stopped(self) -> bool:
        """Whether a stop text was found: the request can be cancelled, its finish_reason is "stop"."""
        return self._stops.stopped

    def push(self, ids: Iterable[int]) -> str:
        """The text that these tokens add for certain; often empty."""
        return self._strip.push(self._stops.push(self._characters.push(ids)))

    def flush(self) -> str:
        """The rest, after the last token. Trailing white space is dropped."""
        rest = self._stops.push(self._characters.flush()) + self._stops.flush()
        return self._strip.push(rest)


def answer_text(tokenizer: NvlmTokenizer, ids: Iterable[int]) -> str:
    """The text of a whole answer."""
    text = AnswerText(tokenizer)
    return text.push(ids) + text.flush()


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[len(text) - length :]):
            return length
    return 0

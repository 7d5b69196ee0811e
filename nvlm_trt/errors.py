"""The errors that nvlm-trt raises on purpose.

    NvlmTrtError                 anything a person or a client is told about in one sentence
    ├── UserError                the caller's mistake: exit code 2, HTTP 4xx
    │   ├── RecipeError          a recipe that cannot be read, or that asks for the impossible
    │   ├── CheckpointError      a checkpoint that is not NVLM-D, or is incomplete or damaged
    │   ├── PromptError          a prompt, history or placeholder count that cannot be answered
    │   ├── ImageRejected        an image that is not decoded: unknown, damaged, or beyond the limits
    │   ├── RequestError         a sampling field or a request that is out of range
    │   ├── DoesNotFitError      not enough disk, memory or room in the engine
    │   ├── BusyError            somebody else holds the lock of the directory or the port
    │   └── EngineError          an engine directory that is missing, incomplete or of another version
    └── FaultError               our side failed: exit code 1, HTTP 5xx
        ├── BuildError           a stage failed
        ├── VerificationError    an engine differs from the reference by more than its gate allows
        └── ServerError          the server did not start, died, or did not answer

Every message says what was wrong, the value seen, the value expected and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_FAULTS_SHOWN = 40


def listed(faults: Sequence[str]) -> str:
    """Faults for a message, one a line; of a long list the first ones and the number of the others."""
    shown = [*faults[:MAX_FAULTS_SHOWN]]
    if len(faults) > len(shown):
        shown.append(f"... and {len(faults) - len(shown)} more")
    return "\n  " + "\n  ".join(shown)


class NvlmTrtError(Exception):
    """One clear sentence for a person.

    Args:
        what: What was wrong, without a full stop.
        seen: The value met, if there is one.
        expected: The value that would have been right.
        fix: What to do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, seen: object = None, expected: object = None, fix: str | None = None) -> None:
        self.what = what
        self.seen = seen
        self.expected = expected
        self.fix = fix
        parts = [what]
        if seen is not None:
            parts.append(f"seen: {seen}")
        if expected is not None:
            parts.append(f"expected: {expected}")
        if fix is not None:
            parts.append(fix)
        super().__init__("; ".join(parts))


def installing(extra: str) -> str:
    """How an extra of this package is installed, as the fix of an error."""
    return f"pip install -e '.[{extra}]' in the checkout"


class UserError(NvlmTrtError):
    """The caller's mistake; nothing was changed."""

    exit_code = 2


class RecipeError(UserError):
    """A recipe that cannot be read, or that asks for the impossible."""


class CheckpointError(UserError):
    """A checkpoint that is not NVLM-D, or is incomplete or damaged."""


class PromptError(UserError):
    """A prompt, history or placeholder count that cannot be answered."""


class ImageRejected(UserError):  # noqa: N818 - the name states the verdict that the client reads
    """An image that is not decoded: unknown, damaged, or beyond the limits."""

    def numbered(self, place: int, count: int) -> ImageRejected:
        """The same, told of image `place` (from 0) of `count`."""
        return self.named(f"image {place + 1} of {count}")

    def named(self, image: object) -> ImageRejected:
        """The same, told of an image by its name, unless it tells that already."""
        if str(image) in str(self):
            return self
        return ImageRejected(f"{image}: {self.what}", seen=self.seen, expected=self.expected, fix=self.fix)


class RequestError(UserError):
    """A sampling field or a request that is out of range."""


class DoesNotFitError(UserError):
    """Not enough disk, memory or room in the engine."""


class BusyError(UserError):
    """Somebody else holds the lock of the directory or the port."""


class EngineError(UserError):
    """An engine directory that is missing, incomplete or of another version."""


class FaultError(NvlmTrtError):
    """Our side failed."""


class BuildError(FaultError):
    """A stage failed."""


class VerificationError(FaultError):
    """An engine differs from the reference by more than its gate allows."""


class ServerError(FaultError):
    """The server did not start, died, or did not answer."""

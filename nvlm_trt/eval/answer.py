"""Who answers the questions of a task: an engine directory in this process, or a server."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from nvlm_trt.decoder.request import SamplingParams
from nvlm_trt.errors import ImageRejected, UserError
from nvlm_trt.eval.tasks import Sample
from nvlm_trt.model.prompt import TileTags
from nvlm_trt.model.tiling import tile_tags
from nvlm_trt.serving.faults import UnavailableError

if TYPE_CHECKING:  # the torch reference is to answer where neither OpenVINO nor tritonclient is installed
    from nvlm_trt.client import NvlmClient
    from nvlm_trt.client.retry import Backoff
    from nvlm_trt.local import LocalEngine

Tags = Literal["kept", "removed", "shuffled"]


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """How all samples of a run are asked.

    Attributes:
        max_tokens: Tokens of an answer at most, for samples that do not say; None for the longest that the recipe
            allows, through a server for its `default_max_tokens`.
        max_tiles: Tiles an image is cut into at most, in place of the samples' own; None leaves theirs. 1 shows the
            model what the thumbnail shows.
        tags: Text tags of tiles as the model was trained, left out, or permuted inside each image.
        seed: Of the permutation.
    """

    max_tokens: int | None = None
    max_tiles: int | None = None
    tags: Tags = "kept"
    seed: int = 0

    def max_tokens_of(self, sample: Sample) -> int | None:
        """Tokens of the answer at most; None for the longest."""
        return self.max_tokens if sample.max_tokens is None else sample.max_tokens

    def max_tiles_of(self, sample: Sample) -> int | None:
        """Tiles an image is cut into at most; None for the recipe's."""
        return sample.max_tiles if self.max_tiles is None else self.max_tiles

    def tags_of(self, sample: Sample) -> TileTags:
        """The text in front of the tiles of the sample's images."""
        match self.tags:
            case "kept":
                return tile_tags
            case "removed":
                return lambda num_tiles: [""] * num_tiles
            case "shuffled":
                return _Shuffled(random.Random(f"{self.seed} {sample.id}"))


class _Shuffled:
    """Tags of an image in another order than their own; one tile alone keeps its tag."""

    def __init__(self, random_numbers: random.Random) -> None:
        self._random = random_numbers

    def __call__(self, num_tiles: int) -> Sequence[str]:
        own = [*tile_tags(num_tiles)]
        shuffled = own.copy()
        while num_tiles > 1 and shuffled == own:
            self._random.shuffle(shuffled)
        return shuffled


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer.

    Attributes:
        text: Its text, stripped.
        output_tokens: Its tokens, the stop id not counted.
        seconds: From the question to the whole answer.
    """

    text: str
    output_tokens: int
    seconds: float


class Answerer(Protocol):
    """Answers samples, greedily; may be called from several threads."""

    def answer(self, sample: Sample) -> Answer:
        """Answer one sample.

        Raises:
            UserError: this sample cannot be answered.
            FaultError: nothing can be answered any more.
        """


class EngineAnswerer:
    """An engine directory of the cpu target in this process.

    Args:
        engine: The engine; the caller closes it.
        options: How samples are asked.
    """

    def __init__(self, engine: LocalEngine, options: AnswerOptions | None = None) -> None:
        self._engine, self._options = engine, options or AnswerOptions()

    def answer(self, sample: Sample) -> Answer:
        """See `Answerer`."""
        started = time.perf_counter()
        max_tokens = self._options.max_tokens_of(sample)
        stream = self._engine.stream(
            sample.question,
            None if max_tokens is None else SamplingParams(max_tokens),
            images=read_images(sample),
            history=sample.history,
            system=sample.system,
            max_tiles=self._options.max_tiles_of(sample),
            tags=self._options.tags_of(sample),
        )
        result = stream.result
        return Answer(result.text, len(result.output_ids), time.perf_counter() - started)


class ServerAnswerer:
    """A running server, over gRPC.

    Args:
        client: The client; the caller closes it.
        options: How samples are asked.
        backoff: When a sample is asked again that the server was too busy for.

    Raises:
        UserError: the options change the tags; a server writes them itself.
    """

    def __init__(
        self, client: NvlmClient, options: AnswerOptions | None = None, backoff: Backoff | None = None
    ) -> None:
        from nvlm_trt.client.retry import Backoff

        self._client, self._options = client, options or AnswerOptions()
        self._backoff, self._chance = backoff or Backoff(), random.Random()
        if self._options.tags != "kept":
            raise UserError(
                "a server writes the tags of tiles itself",
                seen=f"tags {self._options.tags}",
                expected="tags kept",
                fix="evaluate the engine directory in place of the server",
            )

    def answer(self, sample: Sample) -> Answer:
        """See `Answerer`."""
        failed = 0
        while True:
            try:
                return self._ask(sample)
            except UnavailableError:
                failed += 1
                if failed >= self._backoff.attempts:
                    raise
            time.sleep(self._backoff.wait(failed, self._chance))

    def _ask(self, sample: Sample) -> Answer:
        from nvlm_trt.client import Options

        started = time.perf_counter()
        options = Options(max_tokens=self._options.max_tokens_of(sample), max_tiles=self._options.max_tiles_of(sample))
        answer = self._client.generate(
            sample.question, images=sample.images, history=sample.history, system=sample.system, options=options
        )
        return Answer(answer.text, answer.num_output_tokens, time.perf_counter() - started)


def read_images(sample: Sample) -> list[bytes]:
    """The bytes of the sample's image files.

    Raises:
        ImageRejected: one cannot be read.
    """
    return [_read(path) for path in sample.images]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageRejected("an image cannot be read", seen=f"{path} ({error.strerror})") from None

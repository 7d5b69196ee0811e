"""What one round of one subject leaves: raw times, which metrics are worked out from.

A round is measured in a process of its own and comes back as JSON, hence pydantic.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
RateName = Literal["read", "fp32", "bf16", "int8"]
ScenarioName = Literal["load", "repeat", "turns", "stall", "streams", "prefill", "decode", "vision", "growth", "first"]
"""What can be measured; "load" is what `WaveRecord` holds, the others leave a `CaseRecord` for each of their cases."""
Device = Literal["cpu", "cuda"]


class Frozen(BaseModel):
    """A value that nobody changes and that has no members but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RequestRecord(Frozen):
    """One request.

    Attributes:
        ttft_s: From its start to the first token; through a server, to the first piece of text.
        total_s: From its start to its end.
        prompt_tokens: Tokens of the prompt, visual ones included.
        output_tokens: Tokens of the answer.
        images: Images of the prompt.
        tiles: Tiles of all images, thumbnails included; None where only the server knows.
        preprocess_s: Reading and cutting the images and building the prompt; None through a server.
        vision_s: The vision encoder; None through a server.
        arrivals_s: From its start to each token; through a server, to each piece of text. Empty where nobody looked.
    """

    ttft_s: Seconds
    total_s: Seconds
    prompt_tokens: Count
    output_tokens: Count
    images: Count
    tiles: Count | None = None
    preprocess_s: Seconds | None = None
    vision_s: Seconds | None = None
    arrivals_s: tuple[Seconds, ...] = ()


class WaveRecord(Frozen):
    """Requests of one concurrency: so many callers, each of which asks again as soon as it has its answer.

    Attributes:
        concurrency: Callers.
        wall_s: From the start of the first request to the end of the last one.
        requests: In the order of their ends.
    """

    concurrency: Annotated[int, Field(ge=1)]
    wall_s: Seconds
    requests: Annotated[tuple[RequestRecord, ...], Field(min_length=1)]

    @property
    def output_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(request.output_tokens for request in self.requests)

    @property
    def images(self) -> int:
        """Images of all requests."""
        return sum(request.images for request in self.requests)


class CaseRecord(Frozen):
    """One case of a scenario: the requests that its metrics are worked out from.

    Attributes:
        scenario: Which scenario; growth has none of its own, it asks for more sizes of others.
        case: Which of its cases.
        size: What the case varies: tokens of the prompt, tiles or streams; None where it varies nothing.
        wall_s: From the start of the first request to the end of the last one.
        started_s: Start of each request, on one clock.
        requests: In the order in which they were asked.
    """

    scenario: ScenarioName
    case: str
    size: Annotated[int, Field(ge=1)] | None = None
    wall_s: Seconds
    started_s: Annotated[tuple[Seconds, ...], Field(min_length=1)]
    requests: Annotated[tuple[RequestRecord, ...], Field(min_length=1)]

    @property
    def output_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(request.output_tokens for request in self.requests)


class PeerRecord(Frozen):
    """What a load tool of others measured in this round.

    Attributes:
        tool: Its name.
        concurrency: Requests under way.
        figures: Samples by the name of our metric, in its unit; none when it failed.
        error: Why it failed.
    """

    tool: str
    concurrency: int
    figures: dict[str, tuple[float, ...]] = {}
    error: str | None = None


class Rate(Frozen):
    """What the machine can do.

    Attributes:
        name: "read" (bytes a second), or what is multiplied in (operations a second).
        by: The library.
        per_s: The best of a few repeats.
    """

    name: RateName
    by: str
    per_s: float


class AccuracyRecord(Frozen):
    """How a subject answered a task.

    Attributes:
        scores: Of each question, 0 to 1.
        failed: Questions that it could not answer; they score 0.
    """

    scores: tuple[float, ...]
    failed: Count


class RoundRecord(Frozen):
    """One round of one subject.

    Attributes:
        load_s: From nothing to ready, libraries imported before; None for a server that runs already.
        before_bytes: Resident memory before loading.
        peak_bytes: Largest resident memory, that of child processes added; None for a server that runs already.
        gpu_peak_bytes: Most GPU memory in use, all GPUs together, less what was in use before; None without a GPU.
        warmup: The requests that come first and count for nothing else.
        waves: One for each concurrency; none where the scenario "load" was not asked for.
        cases: Of the other scenarios.
        left_out: Scenarios and cases that were not measured, and why.
        settings: How a peer was set up, in its own words; None for all others.
        foreign_cores: Cores that other processes kept busy meanwhile; None for a server that runs already, which is one
            of them.
        peers: Load tools of others.
    """

    load_s: Seconds | None
    before_bytes: Count | None
    peak_bytes: Count | None
    gpu_peak_bytes: Count | None = None
    warmup: tuple[RequestRecord, ...]
    waves: tuple[WaveRecord, ...]
    cases: tuple[CaseRecord, ...] = ()
    left_out: tuple[str, ...] = ()
    settings: str | None = None
    foreign_cores: Seconds | None = None
    peers: tuple[PeerRecord, ...] = ()

    def wave(self, concurrency: int) -> WaveRecord | None:
        """The wave of that concurrency."""
        return next((wave for wave in self.waves if wave.concurrency == concurrency), None)

    def cases_of(self, scenario: ScenarioName, case: str, size: int | None = None) -> Iterator[CaseRecord]:
        """The cases of that name and size."""
        for each in self.cases:
            if (each.scenario, each.case, each.size) == (scenario, case, size):
                yield each

"""The requests that a plan is made for, and what they see of the roofline: latencies and throughput."""

from __future__ import annotations

from dataclasses import dataclass

from nvlm_trt.plan.deployment import Deployment
from nvlm_trt.plan.roofline import Bound, Roofline


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests that are all alike.

    Attributes:
        images: Images of a request.
        tiles: Tiles of an image, its thumbnail included.
        tokens_per_tile: Visual tokens of a tile.
        text_tokens: All other tokens of the prompt: template, tags, question.
        output_tokens: Tokens of the answer.
        concurrency: Requests under way at a time, evenly spread.
        ttft_limit_ms: The time to first token that is asked for, if there is one.
    """

    images: int
    tiles: int
    tokens_per_tile: int
    text_tokens: int
    output_tokens: int
    concurrency: int = 1
    ttft_limit_ms: float | None = None

    @property
    def total_tiles(self) -> int:
        """Tiles of a request."""
        return self.images * self.tiles

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of a request."""
        return self.total_tiles * self.tokens_per_tile

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return self.visual_tokens + self.text_tokens

    @property
    def request_tokens(self) -> int:
        """Tokens of prompt and answer."""
        return self.prompt_tokens + self.output_tokens

    @property
    def mean_context(self) -> int:
        """Tokens that a decode step sees on average: the prompt and half the answer."""
        return self.prompt_tokens + (self.output_tokens + 1) // 2


@dataclass(frozen=True, slots=True)
class Step:
    """One decode step of a batch size.

    Attributes:
        batch: Requests.
        engine: What the engine takes.
        tables_s: Seconds before it, in which the requests' prompt tables are copied.
    """

    batch: int
    engine: Bound
    tables_s: float

    @property
    def seconds(self) -> float:
        """The inter-token latency."""
        return self.tables_s + self.engine.seconds

    @property
    def tokens_per_s(self) -> float:
        """Tokens of all requests together."""
        return self.batch / self.seconds


@dataclass(frozen=True, slots=True)
class Speed:
    """Bounds for one workload; vision, prefill and decode share the GPUs, so their times add up.

    Attributes:
        workload: The requests.
        vision: Vision engine on the tiles of one request.
        prefill: The decoder on its prompt.
        step: A decode step of all `concurrency` requests.
        others_step: A decode step of the other requests, which a new one may have to wait for; None for one request.
        steps: Decode steps of batch sizes 1, 2, 4, ... up to the engine's.
        compute_bound_batch: Batch from which on a step's matrix products are bound by arithmetic.
        all_reduce_bytes: Bytes that a GPU sends while one prompt is read.
        all_reduce_s: Seconds of that at the speed of the interconnect; None where it crosses the network between nodes.
    """

    workload: Workload
    vision: Bound
    prefill: Bound
    step: Step
    others_step: Step | None
    steps: tuple[Step, ...]
    compute_bound_batch: int
    all_reduce_bytes: float
    all_reduce_s: float | None

    @property
    def first_token_s(self) -> float:
        """Vision and prefill of one request on idle GPUs."""
        return self.vision.seconds + self.prefill.seconds

    @property
    def ttft_s(self) -> float:
        """Time to first token of a request that finds the others decoding: their step under way, vision, prefill.

        No other prompt is in its way: requests that end evenly spread follow one another at `period_s`, which is longer
        than one vision and one prefill.
        """
        return (self.others_step.seconds if self.others_step else 0.0) + self.first_token_s

    @property
    def burst_ttft_s(self) -> float:
        """Time to first token of the last one of `concurrency` requests that arrive at the same moment."""
        return self.workload.concurrency * self.first_token_s

    @property
    def period_s(self) -> float:
        """Seconds of all GPUs that a request takes: vision, prefill, and its part of so many decode steps."""
        decode = self.workload.output_tokens * self.step.seconds / self.workload.concurrency
        return self.first_token_s + decode

    @property
    def requests_per_s(self) -> float:
        """Requests answered a second with `concurrency` of them under way all the time."""
        return 1 / self.period_s

    @property
    def output_tokens_per_s(self) -> float:
        """Tokens of answers a second, of all requests."""
        return self.requests_per_s * self.workload.output_tokens

    @property
    def mean_itl_s(self) -> float:
        """Mean time between a request's tokens, with the vision and prefill of the others in between."""
        pauses = (self.workload.concurrency - 1) * self.first_token_s / self.workload.output_tokens
        return self.step.seconds + pauses


def speed_of(deployment: Deployment, workload: Workload) -> Speed:
    """The bounds of a workload on a deployment.

    Raises:
        RecipeError: the shapes do not allow the recipe's tp and pp at its precision.
    """
    roofline, others = Roofline(deployment), workload.concurrency - 1

    def step(batch: int) -> Step:
        engine = roofline.step(batch, workload.mean_context)
        return Step(batch, engine, roofline.tables(batch, workload.visual_tokens))

    return Speed(
        workload=workload,
        vision=roofline.vision(workload.total_tiles),
        prefill=roofline.prefill(workload.prompt_tokens),
        step=step(workload.concurrency),
        others_step=step(others) if others else None,
        steps=tuple(map(step, _batches(deployment.recipe.max_batch_size))),
        compute_bound_batch=roofline.compute_bound_batch(),
        all_reduce_bytes=roofline.all_reduce_bytes(workload.prompt_tokens),
        all_reduce_s=roofline.all_reduce_s(workload.prompt_tokens),
    )


def _batches(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... and `most` itself."""
    powers = (1 << power for power in range(most.bit_length()))
    return tuple(dict.fromkeys((*(batch for batch in powers if batch < most), most)))

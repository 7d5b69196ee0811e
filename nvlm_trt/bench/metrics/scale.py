"""Rates at several sizes, and their shares of what the machine can do."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import ClassVar

from nvlm_trt.bench.arrivals import steady_rate
from nvlm_trt.bench.metrics.base import Measured, Metric
from nvlm_trt.bench.record import CaseRecord, RequestRecord, ScenarioName


class SizedMetric(Metric):
    """A figure at one of the sizes of a scenario.

    Attributes:
        scenario: Whose cases it is worked out from.
        case: Which of its cases.
    """

    scenario: ClassVar[ScenarioName]
    case: ClassVar[str]

    def cases(self, measured: Measured, case: str | None = None) -> Iterator[CaseRecord]:
        """The cases of that size."""
        for done in measured.rounds:
            yield from done.cases_of(self.scenario, case or self.case, self.size)

    def requests(self, measured: Measured, case: str | None = None) -> Iterator[RequestRecord]:
        """Their requests."""
        return (request for each in self.cases(measured, case) for request in each.requests)


class PromptRate(SizedMetric):
    """Tokens of a text prompt read in a second.

    Formula: tokens of the prompt / TTFT, asked alone, an answer of one token; one sample a request.
    """

    name, title, unit, better, section = "prompt_tokens_per_s", "prefill of text", "tokens/s", "higher", "scale"
    size_unit, scenario, case = "tokens", "prefill", "text"

    def samples(self, measured: Measured) -> list[float]:
        """One number a request."""
        return [request.prompt_tokens / request.ttft_s for request in self.requests(measured) if request.ttft_s]


class PromptShare(SizedMetric):
    """Arithmetic of reading a text beside what this machine can do.

    Formula: operations of the prompt (nvlm_trt/plan/flops.py) / TTFT / best rate of matrix products in the same
    arithmetic, measured in this run, x 100.
    """

    name, title, unit, better, section = (
        *("prompt_share", "prefill of text: share of product rate", "%"),
        *("higher", "scale"),
    )
    size_unit, scenario, case = "tokens", "prefill", "text"

    def samples(self, measured: Measured) -> list[float]:
        """One number a request."""
        work = measured.work
        ceiling = measured.product_ceiling(work.decoder_arithmetic) if work else None
        if work is None or ceiling is None:
            return []
        timed = (request for request in self.requests(measured) if request.ttft_s)
        return [100 * work.prefill_flops(each.prompt_tokens) / each.ttft_s / ceiling for each in timed]


class DecodeRate(SizedMetric):
    """Tokens of long answers in a second, all streams together.

    Formula: tokens that arrive from the moment when every stream has its first token to the moment when the first
    stream ends / the time between; short prompts of text that come at once; one sample a repetition.
    """

    name, title, unit, better, section = "decode_tokens_per_s", "decoding", "tokens/s", "higher", "scale"
    size_unit, scenario, case = "streams", "decode", "texts"

    def samples(self, measured: Measured) -> list[float]:
        """One number a repetition."""
        return [rate for case in self.cases(measured) if (rate := steady_rate(case))]


class DecodeReadShare(SizedMetric):
    """Memory traffic of decoding beside what this machine can do.

    Formula: (bytes of the decoder's matrices + streams x context x bytes of a token in the KV cache) x decoding /
    streams / best rate of reading memory, measured in this run, x 100; context = tokens of the prompt and half the
    answer.
    """

    name, title, unit, better, section = (
        *("decode_read_share", "decoding: share of read rate", "%"),
        *("higher", "scale"),
    )
    size_unit, scenario, case = "streams", "decode", "texts"

    def samples(self, measured: Measured) -> list[float]:
        """One number a repetition."""
        work, ceiling = measured.work, measured.read_ceiling
        if work is None or ceiling is None:
            return []
        found = []
        for case in self.cases(measured):
            context = sum(each.prompt_tokens + (each.output_tokens + 1) // 2 for each in case.requests)
            if rate := steady_rate(case):
                found.append(100 * work.decode_bytes(context) * rate / len(case.requests) / ceiling)
        return found


class StreamThroughput(SizedMetric):
    """Tokens of answers in a second, all streams together, their prompts included.

    Formula: tokens of all answers / seconds from the start of the first request to the end of the last one; as many
    short prompts of text at once as there are streams; one sample a repetition.
    """

    name, title, unit, better, section = "streams_tokens_per_s", "throughput of streams", "tokens/s", "higher", "scale"
    size_unit, scenario, case = "streams", "streams", "texts"

    def samples(self, measured: Measured) -> list[float]:
        """One number a repetition."""
        return [case.output_tokens / case.wall_s for case in self.cases(measured) if case.wall_s]


class ImageTtft(SizedMetric):
    """Time to first token of an image.

    Formula: TTFT of a request about a new image, asked alone, an answer of one token; one sample a request.
    """

    name, title, unit, better, section = "image_ttft", "TTFT of an image", "ms", "lower", "scale"
    size_unit, scenario, case = "tiles", "vision", "image"

    def samples(self, measured: Measured) -> list[float]:
        """One number a request."""
        return [1e3 * request.ttft_s for request in self.requests(measured)]


class ImageTiles(SizedMetric):
    """Tiles through the vision encoder in a second.

    Formula: tiles of the image / seconds in vision encoder and projector, asked alone; of whoever does not tell these,
    TTFT of the image - median TTFT of texts of as many tokens, preprocessing included. One sample a request.
    """

    name, title, unit, better, section = "image_tiles_per_s", "tiles of an image", "tiles/s", "higher", "scale"
    size_unit, scenario, case = "tiles", "vision", "image"

    def samples(self, measured: Measured) -> list[float]:
        """One number a request."""
        return [(self.size or 0) / seconds for seconds in self.seconds(measured)]

    def seconds(self, measured: Measured) -> list[float]:
        """Seconds in vision of each request."""
        found = []
        for done in measured.rounds:
            texts = [each.ttft_s for case in done.cases_of("vision", "text", self.size) for each in case.requests]
            for case in done.cases_of("vision", "image", self.size):
                for request in case.requests:
                    known = request.vision_s
                    rest = request.ttft_s - statistics.median(texts) if texts else None
                    found.append(known if known is not None else rest)
        return [seconds for seconds in found if seconds is not None and seconds > 0]


class ImageShare(SizedMetric):
    """Arithmetic of vision beside what this machine can do.

    Formula: tiles of an image a second x operations of a tile (nvlm_trt/plan/flops.py) / best rate of matrix products
    in the same arithmetic, measured in this run, x 100.
    """

    name, title, unit, better, section = (
        *("image_share", "tiles of an image: share of product rate", "%"),
        *("higher", "scale"),
    )
    size_unit, scenario, case = "tiles", "vision", "image"

    def samples(self, measured: Measured) -> list[float]:
        """One number a request."""
        work = measured.work
        ceiling = measured.product_ceiling(work.vision_arithmetic) if work else None
        if work is None or ceiling is None:
            return []
        return [100 * work.vision_flops(1) * rate / ceiling for rate in ImageTiles(size=self.size).samples(measured)]

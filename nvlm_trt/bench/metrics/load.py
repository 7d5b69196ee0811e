"""What clients see: latencies and throughput of requests under way together."""

from __future__ import annotations

from collections.abc import Iterator

from nvlm_trt.bench.metrics.base import Measured, Metric
from nvlm_trt.bench.record import RequestRecord, WaveRecord


class _AtConcurrency(Metric):
    """A figure of the requests of one concurrency."""

    def waves(self, measured: Measured) -> Iterator[WaveRecord]:
        """The waves of that concurrency, one a round."""
        for done in measured.rounds:
            wave = done.wave(self.concurrency or 1)
            if wave is not None:
                yield wave

    def requests(self, measured: Measured) -> Iterator[RequestRecord]:
        """Requests of all rounds."""
        return (request for wave in self.waves(measured) for request in wave.requests)


class TimeToFirstToken(_AtConcurrency):
    """Time to first token (TTFT).

    Formula: arrival of the first token - start of the request (reading the image, vision and prefill are in it), one
    sample a request; through a server, arrival of the first piece of text.
    """

    name, title, unit, better, section = "ttft", "time to first token", "ms", "lower", "load"

    def samples(self, measured: Measured) -> list[float]:
        """One number a request."""
        return [1e3 * request.ttft_s for request in self.requests(measured)]


class InterTokenLatency(_AtConcurrency):
    """Inter-token latency (ITL).

    Formula: (end of the request - arrival of its first token) / (tokens of the answer - 1), one sample a request.
    """

    name, title, unit, better, section = "itl", "inter-token latency", "ms", "lower", "load"

    def samples(self, measured: Measured) -> list[float]:
        """One number a request with two tokens or more."""
        return [1e3 * token_seconds(request) for request in self.requests(measured) if request.output_tokens > 1]


class RequestLatency(_AtConcurrency):
    """What a client waits for its whole answer.

    Formula: end of the request - its start, one sample a request.
    """

    name, title, unit, better, section = "latency", "request latency", "ms", "lower", "load"

    def samples(self, measured: Measured) -> list[float]:
        """One number a request."""
        return [1e3 * request.total_s for request in self.requests(measured)]


class TokenThroughput(_AtConcurrency):
    """Tokens of answers in a second.

    Formula: tokens of all answers / seconds from the start of the first request to the end of the last, vision and
    prefill in between; one sample a round.
    """

    name, title, unit, better, section = "tokens_per_s", "output tokens", "tokens/s", "higher", "load"

    def samples(self, measured: Measured) -> list[float]:
        """One number a round."""
        return [wave.output_tokens / wave.wall_s for wave in self.waves(measured) if wave.wall_s]


class ImageThroughput(_AtConcurrency):
    """Images answered in a second, from file to end of answer.

    Formula: images of all requests / seconds from the start of the first request to the end of the last; one sample a
    round.
    """

    name, title, unit, better, section = "images_per_s", "images", "images/s", "higher", "load"

    def samples(self, measured: Measured) -> list[float]:
        """One number a round."""
        return [wave.images / wave.wall_s for wave in self.waves(measured) if wave.images and wave.wall_s]


def token_seconds(request: RequestRecord) -> float:
    """Seconds between two tokens of an answer with two or more."""
    return max(0.0, request.total_s - request.ttft_s) / (request.output_tokens - 1)

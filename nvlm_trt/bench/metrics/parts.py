"""The parts of one request that has the engine to itself, and the shares of what the machine can do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nvlm_trt.bench.metrics.base import Measured, Metric
from nvlm_trt.bench.metrics.load import token_seconds
from nvlm_trt.bench.record import RequestRecord


class TileThroughput(Metric):
    """Tiles through the vision encoder in a second.

    Formula: tiles of a request / seconds in vision encoder and projector, one sample a request that ran alone.
    """

    name, title, unit, better, section = "tiles_per_s", "tiles", "tiles/s", "higher", "speed"

    def samples(self, measured: Measured) -> list[float]:
        """One number a request."""
        return [tiles / seconds for tiles, seconds in seen_tiles(measured)]


class PrefillThroughput(Metric):
    """Prompt tokens read in a second.

    Formula: tokens of the prompt / (TTFT - preprocessing - vision), one sample a request that ran alone.
    """

    name, title, unit, better, section = "prefill_tokens_per_s", "prefill", "tokens/s", "higher", "speed"

    def samples(self, measured: Measured) -> list[float]:
        """One number a request."""
        return [tokens / seconds for tokens, seconds in prefills(measured)]


class VisionRate(Metric):
    """Arithmetic of the vision encoder.

    Formula: tiles x operations of a tile (encoder and projector, nvlm_trt/plan/flops.py) / seconds in both / 10^9.
    """

    name, title, unit, better, section = "vision_gflops", "vision arithmetic", "GFLOP/s", "higher", "ceiling"

    def samples(self, measured: Measured) -> list[float]:
        """One number a request."""
        work = measured.work
        return [work.vision_flops(tiles) / seconds / 1e9 for tiles, seconds in seen_tiles(measured)] if work else []


class VisionShare(Metric):
    """Vision arithmetic beside what this machine can do.

    Formula: vision arithmetic / best rate of matrix products in the same arithmetic, measured in this run, x 100.
    """

    name, title, unit, better, section = "vision_share", "vision: share of product rate", "%", "higher", "ceiling"

    def samples(self, measured: Measured) -> list[float]:
        """One number a request."""
        ceiling = measured.product_ceiling(measured.work.vision_arithmetic) if measured.work else None
        return _shares(VisionRate().samples(measured), ceiling)


class PrefillRate(Metric):
    """Arithmetic of reading a prompt.

    Formula: operations of the prompt (all matrices, attention, lm_head once; nvlm_trt/plan/flops.py) /
    (TTFT - preprocessing - vision) / 10^9.
    """

    name, title, unit, better, section = "prefill_gflops", "prefill arithmetic", "GFLOP/s", "higher", "ceiling"

    def samples(self, measured: Measured) -> list[float]:
        """One number a request."""
        work = measured.work
        return [work.prefill_flops(tokens) / seconds / 1e9 for tokens, seconds in prefills(measured)] if work else []


class PrefillShare(Metric):
    """Prefill arithmetic beside what this machine can do.

    Formula: prefill arithmetic / best rate of matrix products in the same arithmetic, measured in this run, x 100.
    """

    name, title, unit, better, section = "prefill_share", "prefill: share of product rate", "%", "higher", "ceiling"

    def samples(self, measured: Measured) -> list[float]:
        """One number a request."""
        ceiling = measured.product_ceiling(measured.work.decoder_arithmetic) if measured.work else None
        return _shares(PrefillRate().samples(measured), ceiling)


class DecodeBandwidth(Metric):
    """Memory traffic of decoding.

    Formula: (bytes of the decoder's matrices + context x bytes of a token in the KV cache) / inter-token latency /
    10^9, context = tokens of the prompt and half the answer, requests that ran alone. Not through a server, where
    tokens may arrive together.
    """

    name, title, unit, better, section = "decode_gb_per_s", "decode traffic", "GB/s", "higher", "ceiling"

    def samples(self, measured: Measured) -> list[float]:
        """One number a request with two tokens or more."""
        if measured.work is None:
            return []
        seen = (each for each in measured.alone() if each.vision_s is not None and each.output_tokens > 1)
        timed = [(request, token_seconds(request)) for request in seen]
        return [measured.work.decode_bytes(_context(request)) / seconds / 1e9 for request, seconds in timed if seconds]


class DecodeShare(Metric):
    """Memory traffic beside what this machine can do.

    Formula: decode traffic / best rate of reading memory, measured in this run, x 100; may pass 100 where a small model
    stays in the processor's caches.
    """

    name, title, unit, better, section = "decode_share", "decode: share of read rate", "%", "higher", "ceiling"

    def samples(self, measured: Measured) -> list[float]:
        """One number a request."""
        ceiling = measured.read_ceiling
        return _shares(DecodeBandwidth().samples(measured), ceiling)


def _shares(rates: Sequence[float], ceiling: float | None) -> list[float]:
    """Rates in 10^9 a second as per cent of a ceiling a second; none where it was not measured."""
    return [] if ceiling is None else [1e11 * rate / ceiling for rate in rates]


def seen_tiles(measured: Measured) -> Iterator[tuple[int, float]]:
    """Tiles and seconds in the vision encoder of each request that ran alone and had an image."""
    for request in measured.alone():
        if request.tiles and request.vision_s:
            yield request.tiles, request.vision_s


def prefills(measured: Measured) -> Iterator[tuple[int, float]]:
    """Tokens of the prompt and seconds in the decoder up to the first token, of each request that ran alone."""
    for request in measured.alone():
        if request.preprocess_s is not None and request.vision_s is not None:
            seconds = request.ttft_s - request.preprocess_s - request.vision_s
            if seconds > 0:
                yield request.prompt_tokens, seconds


def _context(request: RequestRecord) -> int:
    """Tokens that a decode step sees on average."""
    return request.prompt_tokens + (request.output_tokens + 1) // 2

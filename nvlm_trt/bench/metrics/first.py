"""Times to the first token of requests that come at once."""

from __future__ import annotations

from nvlm_trt.bench.metrics.base import Measured
from nvlm_trt.bench.metrics.scale import SizedMetric


class _First(SizedMetric):
    """Milliseconds."""

    unit, better, section = "ms", "lower", "scale"
    size_unit, scenario = "streams", "first"

    def samples(self, measured: Measured) -> list[float]:
        """One number a request."""
        return [1e3 * request.ttft_s for request in self.requests(measured)]


class FirstText(_First):
    """Short texts that come at once.

    Formula: TTFT of prompts of 64 tokens, so many at once, answers of one token; one sample a request.
    """

    name, title, case = "first_text", "TTFT of texts at once", "text"


class FirstNewImage(_First):
    """Images that nobody has seen and that come at once.

    Formula: TTFT of requests about a new image of 3 tiles each, so many at once, answers of one token; one sample a
    request.
    """

    name, title, case = "first_new_image", "TTFT of new images at once", "new image"


class FirstKnownImage(_First):
    """New questions about an image that was asked about before.

    Formula: TTFT of requests about the same image of 3 tiles, each with a text of its own, so many at once, answers of
    one token; one sample a request.
    """

    name, title, case = "first_known_image", "TTFT of a known image at once", "known image"

"""The images of a request, from where its URLs say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from nvlm_trt.errors import ImageRejected
from nvlm_trt.gateway.errors import ApiError
from nvlm_trt.gateway.fetch import Fetcher, Hold
from nvlm_trt.gateway.settings import Limits
from nvlm_trt.serving.images import image_file

LARGE_URL: Final = 1 << 18
"""Characters that take as long to decode as it takes to ask a thread."""


class Images:
    """Reads image URLs.

    Args:
        limits: How many, how large, how long.
        fetcher: For those that are elsewhere.
        came: Told where an image came from.
    """

    def __init__(self, limits: Limits, fetcher: Fetcher, came: Callable[[str], None]) -> None:
        self._limits = limits
        self._fetcher = fetcher
        self._came = came

    async def read(self, urls: Sequence[str], hold: Hold) -> list[bytes]:
        """The image files behind URLs, in their order.

        Args:
            urls: Where they are.
            hold: Told how many bytes more were fetched; those within the URLs came with the body.

        Raises:
            ApiError: 400, an image is refused, or they did not come in time; 503, too many bytes are held.
        """
        if len(urls) > self._limits.max_images:
            sentence = f"there are too many images; seen: {len(urls)}; expected: at most {self._limits.max_images}"
            raise ApiError(400, sentence, code="too_many_images", param="messages")
        inline = {place: await self._inline(url, place, len(urls)) for place, url in enumerate(urls) if _is_inline(url)}
        elsewhere = [place for place in range(len(urls)) if place not in inline]
        fetched = dict(zip(elsewhere, await self._fetch([urls[place] for place in elsewhere], hold), strict=True))
        for source, images in (("inline", inline), ("fetched", fetched)):
            for _ in images:
                self._came(source)
        return [{**inline, **fetched}[place] for place in range(len(urls))]

    async def _fetch(self, urls: Sequence[str], hold: Hold) -> list[bytes]:
        tasks = [asyncio.create_task(self._fetcher.fetch(url, hold)) for url in urls]
        try:
            async with asyncio.timeout(self._limits.fetch_time):
                return await asyncio.gather(*tasks)
        except TimeoutError:
            # The client named the servers that are slow: as one that cannot be reached, this is no fault of ours.
            sentence = "the images of the request did not come in time"
            raise ApiError(400, sentence, code="url_timeout", param="messages") from None
        finally:
            for task in tasks:
                task.cancel()

    async def _inline(self, url: str, place: int, count: int) -> bytes:
        """The file in a URL; a large one is decoded beside the event loop."""
        try:
            if len(url) < LARGE_URL:
                return image_file(url.encode(), self._limits.max_image)
            return await asyncio.to_thread(lambda: image_file(url.encode(), self._limits.max_image))
        except (ImageRejected, UnicodeEncodeError) as error:
            what = error.args[0] if isinstance(error, ImageRejected) else "it is no URL"
            raise ApiError(
                400, f"image {place + 1} of {count}: {what}", code="invalid_image", param="messages"
            ) from None


def _is_inline(url: str) -> bool:
    return url[:5].lower() == "data:"

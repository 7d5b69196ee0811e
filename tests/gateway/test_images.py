"""The images of a request: in the order of their places, wherever they come from."""

from __future__ import annotations

import asyncio
import base64

import pytest

from nvlm_trt.gateway.errors import ApiError
from nvlm_trt.gateway.fetch import Fetcher, Hold
from nvlm_trt.gateway.images import Images
from nvlm_trt.gateway.settings import Limits


class Pictures(Fetcher):
    """Fetches the URL's own text; one that ends in `slow` never comes."""

    def __init__(self) -> None:
        super().__init__((), 0)
        self.given_up: list[str] = []

    async def fetch(self, url: str, hold: Hold) -> bytes:
        if url.endswith("refused"):
            raise ApiError(400, "no", code="url_not_fetched")
        try:
            await asyncio.sleep(60 if url.endswith("slow") else 0)
        except asyncio.CancelledError:
            self.given_up.append(url)
            raise
        return url.encode()


def inline(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def read(urls: list[str], fetcher: Pictures | None = None, **limits: float) -> tuple[list[bytes], list[str]]:
    came: list[str] = []
    images = Images(Limits(**limits), fetcher or Pictures(), came.append)  # type: ignore[arg-type]
    return asyncio.run(images.read(urls, lambda size: None)), came


def refused(urls: list[str], code: str, status: int = 400, **limits: float) -> str:
    with pytest.raises(ApiError) as refusal:
        read(urls, **limits)
    assert (refusal.value.status, refusal.value.code) == (status, code)
    return refusal.value.sentence


def test_images_keep_their_order_wherever_they_come_from() -> None:
    files, came = read(["http://a/1", inline(b"two"), "http://a/3", inline(b"four", "image/jpeg")])
    assert files == [b"http://a/1", b"two", b"http://a/3", b"four"]
    assert sorted(came) == ["fetched", "fetched", "inline", "inline"]
    assert read([]) == ([], [])


def test_too_many_or_too_large_images_are_refused_before_they_are_read() -> None:
    assert "seen: 3; expected: at most 2" in refused([inline(b"x")] * 3, "too_many_images", max_images=2)
    refused([inline(bytes(100))], "invalid_image", max_image=50)


@pytest.mark.parametrize("uri", ["data:,x", "data:text/plain;base64,eA==", "data:image/png;base64,e", "DATA:image/png"])
def test_a_data_uri_that_is_no_image_names_its_number(uri: str) -> None:
    assert refused([inline(b"x"), uri], "invalid_image").startswith("image 2 of 2: ")


def test_one_that_is_refused_ends_the_fetching_of_the_others() -> None:
    pictures = Pictures()
    with pytest.raises(ApiError):
        read(["http://a/slow", "http://a/refused"], pictures)
    assert pictures.given_up == ["http://a/slow"]


def test_all_that_are_fetched_have_one_time_together() -> None:
    refused(["http://a/1", "http://a/slow"], "url_timeout", fetch_time=0.05)

"""The pages of a server."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.parse
from typing import Final

from nvlm_trt.errors import RequestError, ServerError
from nvlm_trt.loopback import opener_for
from nvlm_trt.top.window import Scrape

READ_SECONDS: Final = 5.0
MAX_PAGE: Final = 16 << 20

ABSENT: Final = "start it with nvlm-trt serve, or give the HOST:PORT that it says HTTP is on"
ELSEWHERE: Final = "give the HOST:PORT of HTTP or of metrics that nvlm-trt serve says when it is ready"


def metrics_url(given: str) -> str:
    """The address of a server's metrics.

    Args:
        given: ``host:port`` or a URL; a URL with a path is taken as it is.

    Raises:
        RequestError: it is neither.
    """
    parts = urllib.parse.urlsplit(given if "://" in given else f"http://{given}")
    try:
        bad = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
    except ValueError:  # a port that is no number
        bad = True
    if bad:
        raise RequestError("this is no address of a server", seen=given[:64], expected="HOST:PORT or http://HOST:PORT")
    path = parts.path if parts.path not in ("", "/") else "/metrics"
    return f"{parts.scheme}://{parts.netloc}{path}"


def read_page(url: str) -> Scrape:
    """Read a page.

    Raises:
        ServerError: the server does not answer, or with something else.
    """
    try:
        with opener_for(urllib.parse.urlsplit(url).hostname or "").open(url, timeout=READ_SECONDS) as answer:
            return Scrape.read(answer.read(MAX_PAGE).decode(), time.monotonic())
    except urllib.error.HTTPError as error:
        raise ServerError("no metrics are shown there", seen=f"{url}: status {error.code}", fix=ELSEWHERE) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ServerError("the server cannot be reached", seen=f"{url}: {reason}", fix=ABSENT) from None
    except ValueError:  # UnicodeDecodeError is one
        raise ServerError("what is shown there are no metrics", seen=url, fix=ELSEWHERE) from None

"""Web pages of other sites, which reach servers that only the user's own machine can reach.

A page may post a form or a text anywhere; that its script cannot read the answer (CORS) spares the server no work. An
API key stops it. Where there are none, what browsers say of a request decides; programs say nothing of the kind, and no
script can change what a browser says.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping

from nvlm_trt.gateway.errors import ApiError


def check_site(headers: Mapping[bytes, bytes]) -> None:
    """Refuse what a browser asks for a page of another site.

    Browsers send Sec-Fetch-Site to https and to loopback. Elsewhere Origin tells as much: the page's own is that of
    the server, which Host names as the client wrote it, or a proxy (whose port may be another one).

    Args:
        headers: Of the request, by lower-case names.

    Raises:
        ApiError: 403, it is a page of another site.
    """
    if _is_foreign(headers):
        sentence = "pages of other sites may not ask a server without API keys; ask from a program, or give it keys"
        raise ApiError(403, sentence, code="cross_site_request")


def _is_foreign(headers: Mapping[bytes, bytes]) -> bool:
    site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
    if site is not None:
        return site.strip().lower() == b"cross-site"
    if origin is None:
        return False
    page = _host(origin)
    return page is None or page != _host(b"//" + headers.get(b"host", b""))


def _host(url: bytes) -> str | None:
    """The host of an URL, without its port; None where it has none, as the origin `null` has."""
    try:
        return urllib.parse.urlsplit(url.decode("latin-1")).hostname
    except ValueError:
        return None

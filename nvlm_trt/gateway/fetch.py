"""Fetch an image from a URL that a client names, without becoming the client's arm inside the network.

Only domains that the operator lists, over http and https. A name is resolved once, every address of it has to be
public, and the connection goes to that address: a second answer of DNS changes nothing. Redirects pass the same checks.
A URL is parsed by the library that connects: what is checked is what is connected to.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from nvlm_trt.gateway.errors import ApiError

MAX_REDIRECTS: Final = 3
PORTS: Final = {"http": 80, "https": 443}
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
GLOBAL_UNICAST: Final = ipaddress.ip_network("2000::/3")
"""All that is given out of IPv6's addresses; what Python calls global beside it are old and local uses, some of which
carry addresses of IPv4 (::/96, ::ffff:0:0:0/96, 64:ff9b:1::/48, fec0::/10)."""

MAX_URL: Final = 4096

RESOLVERS: Final = ThreadPoolExecutor(16, "nvlm-dns")
"""Threads of their own: a slow DNS keeps one for as long as it likes, and must not keep those that read bodies."""

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""From a host and a port to addresses."""

Hold = Callable[[int], None]
"""Told how many bytes more are held; raises where there is no room for them."""


@dataclass(slots=True)
class _Lookup:
    """A question to the system's resolver, and how many wait for its answer."""

    answer: Future[Sequence[str]]
    waiting: int = 0


class SystemResolver:
    """Asks the system's resolver, for each host once at a time; used in one event loop.

    A lookup that has its thread cannot be ended, and a dead DNS keeps it for longer than any request waits: whoever
    asks for the same host meanwhile joins it, so that one name takes one thread.
    """

    def __init__(self) -> None:
        self._under_way: dict[str, _Lookup] = {}

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """The addresses of a host.

        Raises:
            OSError: it has none.
        """
        lookup = self._under_way.get(host)
        if lookup is None:
            lookup = self._under_way[host] = _Lookup(RESOLVERS.submit(_addresses, host, port))
            lookup.answer.add_done_callback(lambda _: self._under_way.pop(host, None))
        lookup.waiting += 1
        try:
            return await asyncio.shield(asyncio.wrap_future(lookup.answer))
        finally:
            lookup.waiting -= 1
            if not lookup.waiting:
                lookup.answer.cancel()  # it leaves the queue; one that has its thread goes on


def _addresses(host: str, port: int) -> Sequence[str]:
    return [str(address[0]) for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def is_public(address: str) -> bool:
    """Whether an address is on the public internet; those that carry another one inside are judged by it."""
    one = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(one, ipaddress.IPv6Address):
        inner = one.ipv4_mapped or one.sixtofour or (one.teredo[1] if one.teredo else None)
        if inner is None and one in NAT64:
            inner = ipaddress.IPv4Address(int(one) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if one not in GLOBAL_UNICAST:
            return False
    return one.is_global and not one.is_multicast


class Fetcher:
    """Fetches images.

    Args:
        domains: ``host``, ``host:port`` or ``*.host`` (every name below it).
        max_bytes: Largest file.
        resolve: From names to addresses; None asks the system.
        allowed: Whether an address may be connected to.
    """

    def __init__(
        self,
        domains: Sequence[str],
        max_bytes: int,
        *,
        resolve: Resolve | None = None,
        allowed: Callable[[str], bool] = is_public,
    ) -> None:
        self._domains = tuple(domain.lower() for domain in domains)
        self._max_bytes = max_bytes
        self._resolve = resolve or SystemResolver()
        self._allowed = allowed

    async def fetch(self, url: str, hold: Hold) -> bytes:
        """The file behind a URL; how long it may take is the caller's to say.

        Args:
            url: Where it is.
            hold: Told of its bytes as they come.

        Raises:
            ApiError: 400, the URL is not allowed or holds no image, or the file is too large; what `hold` raises.
        """
        place = _parsed(url)
        for _ in range(MAX_REDIRECTS + 1):
            self._check(place)
            address = await self._address(place)
            try:
                answer = await self._get(place, address, hold)
            except (aiohttp.ClientError, OSError, ValueError):
                raise _not_fetched("its server cannot be reached") from None
            if isinstance(answer, bytes):
                return answer
            place = place.join(_parsed(answer))
        raise _not_fetched("it is redirected too often")

    def _check(self, place: URL) -> None:
        if place.scheme not in PORTS:
            raise _not_allowed("only http, https and data URIs are read")
        if place.user is not None or place.password is not None:
            raise _not_allowed("it holds a user's name")
        if not place.raw_host or not self._is_listed(place):
            raise _not_allowed("its domain is not one that this server fetches from")

    def _is_listed(self, place: URL) -> bool:
        host = (place.raw_host or "").lower().rstrip(".")
        for domain in self._domains:
            name, _, own_port = domain.partition(":")
            if place.port != (int(own_port) if own_port else PORTS[place.scheme]):
                continue
            if host == name or (name.startswith("*.") and host.endswith(name[1:])):
                return True
        return False

    async def _address(self, place: URL) -> str:
        try:
            addresses = await self._resolve((place.raw_host or "").rstrip("."), place.port or 0)
        except (OSError, UnicodeError):
            raise _not_fetched("its domain has no address") from None
        if not addresses or not all(self._allowed(address) for address in addresses):
            raise _not_allowed("its domain leads to no public address")
        return addresses[0]

    async def _get(self, place: URL, address: str, hold: Hold) -> bytes | str:
        """The file, or where it is redirected to."""
        connector = aiohttp.TCPConnector(resolver=_Pinned(address), use_dns_cache=False, force_close=True)
        headers = {"Accept": "image/*", "Accept-Encoding": "identity"}
        async with (
            aiohttp.ClientSession(connector=connector, auto_decompress=False, trust_env=False) as session,
            session.get(place, headers=headers, allow_redirects=False) as answer,
        ):
            if answer.status in REDIRECTS:
                return answer.headers.get("Location", "")
            if answer.status != 200:
                raise _not_fetched(f"its server answered {answer.status}")
            if not answer.content_type.startswith("image/"):
                raise _not_fetched("it is no image")
            return await self._read(answer, hold)

    async def _read(self, answer: aiohttp.ClientResponse, hold: Hold) -> bytes:
        file = bytearray()
        if (answer.content_length or 0) > self._max_bytes:
            raise _too_large(self._max_bytes)
        async for piece in answer.content.iter_any():
            if len(file) + len(piece) > self._max_bytes:
                raise _too_large(self._max_bytes)
            hold(len(piece))
            file += piece
        return bytes(file)


class _Pinned(AbstractResolver):
    """Gives the one address that was checked, whatever is asked."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        family = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        return [
            ResolveResult(
                hostname=host,
                host=self._address,
                port=port,
                family=family,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
        ]

    async def close(self) -> None:
        """Nothing is held."""


def _parsed(url: str) -> URL:
    if len(url) > MAX_URL or not url.isprintable() or "\\" in url or " " in url:
        raise _not_allowed("it is no URL")
    try:
        return URL(url)
    except ValueError:
        raise _not_allowed("it is no URL") from None


def _not_allowed(why: str) -> ApiError:
    return ApiError(400, f"an image URL is not allowed: {why}", code="url_not_allowed", param="messages")


def _not_fetched(why: str) -> ApiError:
    return ApiError(400, f"an image URL cannot be fetched: {why}", code="url_not_fetched", param="messages")


def _too_large(limit: int) -> ApiError:
    return ApiError(
        400, f"an image is too large; expected: at most {limit} bytes", code="image_too_large", param="messages"
    )

"""What an operator decides about the gateway: limits, keys, domains."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Self

from nvlm_trt.errors import RequestError
from nvlm_trt.loopback import LOOPBACK
from nvlm_trt.recipe import BuildRecipe

KEYS_VARIABLE: Final = "NVLM_TRT_API_KEYS"
"""Environment variable with API keys, set apart by spaces or commas."""

MIN_KEY_LENGTH: Final = 16
"""Characters of an API key at least; shorter ones can be guessed."""

GOOD_KEY: Final = re.compile("[!-~]+")
"""White space in a line of keys is a comment's beginning, not a key's: no client would show both."""

DOMAIN: Final = re.compile(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*(:\d{1,5})?")

TEXT_ROOM: Final = 16 << 20
"""Bytes of a request besides its images."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request, and all of them together, may take. Sizes in bytes, times in seconds.

    Attributes:
        max_body: Largest body, as it comes and after unpacking.
        max_chunks: Most chunks of a body without a length.
        max_headers: Most header lines.
        max_header_bytes: The request line, the headers and what else is not the body (trailers) together.
        max_buffered: All bodies and fetched images that are held at once.
        max_connections: Most connections.
        max_images: Images of one request.
        max_image: Largest image file.
        max_concurrent: Requests that the server works on at once.
        max_queue: Requests that wait for one of those to end; more are refused.
        max_planned: Tokens of their prompts and answers, all together.
        queue_time: Wait for the decoder; a request that would have to expect a longer one is refused.
        deadline: From a request's first byte to its answer's last.
        header_time: For the headers of a request.
        body_time: For its body.
        write_time: That a client may leave its answer unread.
        fetch_time: For the images of a request that are fetched, together.
        key_per_minute: Requests a minute of one API key (of all clients together, where there are no keys).
        key_concurrent: Requests of one API key at once.
    """

    max_body: int = 64 << 20
    max_chunks: int = 65_536
    max_headers: int = 100
    max_header_bytes: int = 32 << 10
    max_buffered: int = 2 << 30
    max_connections: int = 2048
    max_images: int = 8
    max_image: int = 32 << 20
    max_concurrent: int = 32
    max_queue: int = 128
    max_planned: int = 1 << 20
    queue_time: float = 3.0
    deadline: float = 600.0
    header_time: float = 10.0
    body_time: float = 60.0
    write_time: float = 30.0
    fetch_time: float = 5.0
    key_per_minute: float | None = None
    key_concurrent: int | None = None

    @classmethod
    def of(cls, recipe: BuildRecipe) -> Self:
        """The limits that a recipe asks for; a body may hold as many images as allowed, in base64, and text.

        A decoder of `max_batch_size` requests is kept busy by a few times as many: some are still being seen and read.
        Of the longest kind that is all that may come in; of shorter ones more may wait.
        """
        images = recipe.image_limits
        return cls(
            max_body=recipe.max_images * images.max_bytes * 4 // 3 + TEXT_ROOM,
            max_images=recipe.max_images,
            max_image=images.max_bytes,
            max_concurrent=4 * recipe.max_batch_size,
            max_queue=16 * recipe.max_batch_size,
            max_planned=4 * recipe.max_batch_size * (recipe.max_input_len + recipe.max_output_len),
        )

    def changed(self, words: Sequence[str]) -> Self:
        """These limits with others in place of some.

        Args:
            words: ``NAME=VALUE`` each, the name an attribute of this class.

        Raises:
            RequestError: there is no such limit, or the value is none.
        """
        kinds = {one.name: int if str(one.type).startswith("int") else float for one in fields(self)}
        values: dict[str, Any] = {}
        for word in words:
            name, _, text = word.partition("=")
            if name not in kinds:
                near = difflib.get_close_matches(name, kinds, n=1)
                fix = f"did you mean {near[0]}?" if near else f"known limits: {', '.join(kinds)}"
                raise RequestError("there is no such limit", seen=name[:64], fix=fix)
            try:
                values[name] = kinds[name](text)
            except ValueError:
                values[name] = -1
            least = 0 if name == "max_queue" else 1 if kinds[name] is int else 0.001
            if not least <= values[name] < math.inf:
                kind = "a whole number" if kinds[name] is int else "a number"
                raise RequestError(f"the limit {name} is out of range", seen=text[:64], expected=f"{kind} from {least}")
        return replace(self, **values)


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """How the gateway treats its clients.

    Attributes:
        limits: What a request may take.
        api_keys: Keys of which a client must show one; none lets everybody in.
        image_domains: Domains that images are fetched from: ``host``, ``host:port`` or ``*.host``.
        key_file: Where `api_keys` were read, to be read anew when it changes; None for a file that is not looked at.
    """

    limits: Limits = field(default_factory=Limits)
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    image_domains: tuple[str, ...] = ()
    key_file: Path | None = None

    def inner_host(self, host: str) -> str:
        """Where tritonserver's gRPC and metrics listen: on loopback where keys are asked for, which they know not."""
        return LOOPBACK if self.api_keys else host

    def shown(self) -> dict[str, object]:
        """The settings for people, None for what is not set; of the keys their number alone."""
        return {
            "api_keys": len(self.api_keys),
            "api_key_file": self.key_file and str(self.key_file),
            "image_domains": " ".join(self.image_domains) or None,
            **asdict(self.limits),
        }


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where tritonserver listens, ``host:port`` each."""

    http: str
    grpc: str
    metrics: str


def read_keys(file: Path | None, environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """API keys from a file, one a line (a line that begins with ``#`` is a comment), and from the environment.

    Raises:
        RequestError: the file cannot be read or holds no key, or a key is too short or holds white space.
    """
    keys = environment.get(KEYS_VARIABLE, "").replace(",", " ").split()
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            raise RequestError("the file of API keys cannot be read", seen=file) from None
        held = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not held:
            raise RequestError("the file of API keys holds none", seen=file, expected="one key a line")
        keys += held
    bad = [place for place, key in enumerate(keys, 1) if len(key) < MIN_KEY_LENGTH or not GOOD_KEY.fullmatch(key)]
    if bad:
        expected = f"{MIN_KEY_LENGTH} or more ASCII characters without white space; a comment on a line of its own"
        raise RequestError(f"API key {bad[0]} of {len(keys)} is no good key", expected=expected)
    return tuple(dict.fromkeys(keys))


def check_domains(domains: Sequence[str]) -> tuple[str, ...]:
    """Domains that images may be fetched from.

    Raises:
        RequestError: one is none.
    """
    for domain in domains:
        if not DOMAIN.fullmatch(domain):
            raise RequestError("this is no domain", seen=domain[:64], expected="host, host:port or *.host")
    return tuple(domain.lower() for domain in domains)

"""The web page: its files, as they lie in ``page/``, and the headers that keep it to itself."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import Response

from nvlm_trt.gateway.door import PAGE
from nvlm_trt.gateway.errors import ApiError

FOLDER: Final = Path(__file__).parent / "page"
START: Final = "index.html"
TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

POLICY: Final = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' data: blob:",
        *(f"{name} 'none'" for name in ("object-src", "base-uri", "form-action", "frame-ancestors")),
    )
)
"""Nothing from elsewhere, no script or style within the HTML; pictures may be those that the user gave."""

HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # kept by browsers, asked about each time by its ETag: a new version is seen at once
}


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    kind: str
    tag: str

    @classmethod
    def read(cls, path: Path) -> _File:
        content = path.read_bytes()
        return cls(content, TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def page_routes() -> APIRouter:
    """The page at ``/`` and its files below ``/page/``; read once, so that a client names no path of the disk."""
    files = {path.name: _File.read(path) for path in FOLDER.iterdir() if path.suffix in TYPES}
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def start(request: Request) -> Response:
        return _answer(files[START], request)

    @router.get(PAGE + "{name}")
    async def part(name: str, request: Request) -> Response:
        if name not in files or name == START:
            raise ApiError(404, "there is no such file", code="not_found")
        return _answer(files[name], request)

    return router


def _answer(file: _File, request: Request) -> Response:
    headers = {**HEADERS, "ETag": file.tag}
    known = request.headers.get("if-none-match", "")
    if file.tag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.kind)

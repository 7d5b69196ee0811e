"""Check the JSON body of a generate call before Triton sees it.

Triton 2.51 answers malformed JSON and values of a wrong type with status 500 and words about its parser. A client's
mistake is a 4xx and one sentence that names the field.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Final

from nvlm_trt.errors import RequestError
from nvlm_trt.gateway.body import check_members
from nvlm_trt.parsed import is_whole
from nvlm_trt.serving.fields import MAX_FP32, Field, refuse_unknown

NESTED: Final = "parameters"
"""Triton reads the members of this object as if they stood beside it."""

STREAM: Final = "stream"

RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "INT32": (-(2**31), 2**31 - 1),
    "UINT64": (0, 2**64 - 1),
    "FP32": (-MAX_FP32, MAX_FP32),
}
KINDS: Final = {
    "BYTES": "text",
    "INT32": "a whole number",
    "UINT64": "a whole number",
    "FP32": "a finite number",
    "BOOL": "true or false",
}


def check_generate(body: bytes, fields: Iterable[Field], *, stream: bool) -> bytes:
    """Check the body of a call of generate or generate_stream.

    Args:
        body: What the client sent.
        fields: The fields of the model.
        stream: Whether generate_stream was called.

    Returns:
        The body to pass on. Who calls generate_stream and does not say `stream` wants it.

    Raises:
        ApiError: it has too many members.
        RequestError: the body is no JSON object, a field is unknown or of the wrong type, or generate is asked to
            stream, which it cannot.
    """
    check_members(body)
    known = {field.name: field for field in fields}
    members = _parse(body)
    nested = members.pop(NESTED, {})
    if not isinstance(nested, dict):
        raise RequestError(f"{NESTED} is not an object", seen=_kind(nested), expected="an object of fields")
    for part in (members, nested):
        refuse_unknown(part, known.values())
        for name, value in part.items():
            if name in known:
                _check_value(known[name], value)
    asked = {**members, **nested}
    if not stream and asked.get(STREAM) in (True, [True]):
        raise RequestError("generate answers as a whole", seen="stream true", fix="call generate_stream")
    if stream and asked and STREAM not in asked:
        return b'{"stream": true, ' + body.lstrip()[1:]
    return body


def _parse(body: bytes) -> dict[str, object]:
    try:
        # Decoded here: Python would take UTF-16 too, and of a field that is there twice the last, Triton the first.
        members = json.loads(body.decode(), object_pairs_hook=_members)
    except UnicodeDecodeError:
        raise RequestError("the request is not UTF-8 text", expected="a JSON object") from None
    except json.JSONDecodeError as error:
        where = f"{error.msg} at character {error.pos}" if body.strip() else "an empty body"
        raise RequestError("the request is not JSON", seen=where, expected="a JSON object") from None
    except (RecursionError, ValueError):  # nested too deeply, or a number of thousands of digits
        raise RequestError("the request is no JSON that is read here", expected="a JSON object of fields") from None
    if not isinstance(members, dict):
        raise RequestError("the request is not an object", seen=_kind(members), expected="a JSON object")
    return members


def _members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise RequestError("a field is there twice", expected="each field once")
    return members


def _check_value(field: Field, value: object) -> None:
    values = value if isinstance(value, list) else [value]
    if not field.many and len(values) != 1:
        raise RequestError(f"{field.name} does not hold one value", seen=f"{len(values)} values", expected="1 value")
    for item in values:
        if not _fits(field.dtype, item):
            low, high = RANGES.get(field.dtype, ("", ""))
            bounds = f" from {low} to {high}" if field.dtype in RANGES else ""
            expected = KINDS[field.dtype] + bounds
            raise RequestError(f"{field.name} is not {KINDS[field.dtype]}", seen=_kind(item), expected=expected)
        if isinstance(item, str) and not is_whole(item):
            raise RequestError(f"{field.name} holds half a surrogate pair", expected="whole characters")


def _fits(dtype: str, value: object) -> bool:
    if dtype == "BYTES":
        return isinstance(value, str)
    if dtype == "BOOL":
        return isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, int | float if dtype == "FP32" else int):
        return False
    low, high = RANGES[dtype]
    return low <= value <= high


def _kind(value: object) -> str:
    """What a client sent, in JSON's words; numbers as they are, for they may only be out of range."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)[:32]
    names: Mapping[type, str] = {str: "text", bool: "true or false", list: "a list", dict: "an object"}
    return names.get(type(value), "null")

"""JSON and YAML that a person may have written: whatever is wrong with the text is a `ValueError`."""

from __future__ import annotations

import json
from typing import Any


def json_value(text: str) -> Any:
    """The value of a JSON text; a byte order mark in front, which editors on Windows write, is ignored (RFC 8259, 8.1).

    Raises:
        ValueError: it is no JSON, or is nested more deeply than Python reads.
    """
    try:
        return json.loads(text.removeprefix("\ufeff"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def yaml_value(text: str) -> Any:
    """The value of a YAML text; errors are those of `json_value`."""
    import yaml  # here: a checkpoint's config.json is read without it

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None

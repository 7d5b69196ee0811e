"""JSON and YAML that a person may have written: whatever is wrong with the text is a `ValueError`.

But for half a surrogate pair, which JSON can name: whoever means a text for others asks `is_whole`.
"""

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
    """The value of a YAML text; errors are those of `json_value`, and a key that a mapping has twice."""
    import yaml  # here: a checkpoint's config.json is read without it

    class Loader(yaml.SafeLoader):
        """Of a key that is given twice PyYAML takes the last value, and says nothing."""

        def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
            node = super().compose_mapping_node(anchor)
            seen = set()
            for key, _ in node.value:
                if str(key.value) in seen:
                    raise ValueError(f"{key.value} is given twice, again in line {key.start_mark.line + 1}")
                seen.add(str(key.value))
            return node

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def is_whole(text: str) -> bool:
    """Whether a text can be written as UTF-8; half a surrogate pair, which Python has for other bytes too, cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

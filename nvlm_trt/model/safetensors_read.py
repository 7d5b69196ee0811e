"""Open safetensors files: headers, and one clear error for a damaged file."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from nvlm_trt.errors import CheckpointError

Header = dict[str, tuple[tuple[int, ...], str]]
"""Shape and dtype (safetensors' own word) of every tensor by its name."""


def opened(file: Path, what: str, framework: str = "pt") -> safe_open:
    """The file, for a `with`; it is mapped until that ends.

    Args:
        file: A safetensors file.
        what: What to call it in an error, with its article.
        framework: Whose tensors it gives: "pt" loads torch, "np" is enough for headers.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return safe_open(file, framework=framework, device="cpu")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{what} cannot be read ({error})", seen=file) from None


def read_header(file: Path, what: str) -> Header:
    """What the file holds, in its order; arguments and errors as `opened`."""
    with opened(file, what, "np") as content:
        parts = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118 - safe_open is no mapping
        return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}


def data_offsets(file: Path, what: str) -> dict[str, int]:
    """Where in the file each tensor's values begin, in bytes; arguments and errors as `opened`.

    They lie there in row-major order, without gaps.
    """
    with opened(file, what, "np"), file.open("rb") as content:  # the library has checked the header when it is opened
        length = int.from_bytes(content.read(8), "little")
        members = json.loads(content.read(length))
    return {name: 8 + length + each["data_offsets"][0] for name, each in members.items() if name != "__metadata__"}

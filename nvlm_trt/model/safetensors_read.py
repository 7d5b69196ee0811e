"""Open safetensors files: headers, and one clear error for a damaged file."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from nvlm_trt.errors import CheckpointError

Header = dict[str, tuple[tuple[int, ...], str]]
"""Shape and dtype (safetensors' own word) of every tensor by its name."""


def opened(file: Path, what: str) -> safe_open:
    """The file, for a `with`; it is mapped until that ends.

    Args:
        file: A safetensors file.
        what: What to call it in an error, with its article.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{what} cannot be read ({error})", seen=file) from None


def read_header(file: Path, what: str) -> Header:
    """What the file holds, in its order; arguments and errors as `opened`."""
    with opened(file, what) as content:
        parts = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118 - safe_open is no mapping
        return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}

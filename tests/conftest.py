"""Fixtures that every area shares: a tiny checkpoint, real photographs, and the reference data where it is at hand."""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import skimage.data
from hypothesis import HealthCheck, settings
from PIL import Image

from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.synthetic import tiny_spec, write_synthetic
from nvlm_trt.model.tokenizer import NvlmTokenizer

# How long an example takes says nothing on a shared machine.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "retina", "page", "moon", "camera")


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The environment names a proxy for every address; nobody reaches it before it listens."""
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy", "grpc_proxy", "https_proxy", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{bound.getsockname()[1]}")
        yield bound


@pytest.fixture(scope="session")
def photographs() -> dict[str, Image.Image]:
    """Photographs of several aspect ratios, colour and grey, as RGB images."""
    images = {}
    for name in PHOTOGRAPHS:
        file = Path(skimage.data.__file__).parent / f"{name}.png"
        source = file if file.is_file() else file.with_suffix(".jpg")
        if source.is_file():
            images[name] = Image.open(source).convert("RGB")
    assert len(images) >= 3, "scikit-image ships at least three photographs in its wheel"
    return images


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic checkpoint of tiles of 112 pixels (16 visual tokens), in several shards. Read only."""
    out = tmp_path_factory.mktemp("checkpoint") / "tiny"
    write_synthetic(out, tiny_spec(tile_size=112, decoder_layers=3))
    return out


@pytest.fixture(scope="session")
def opened(tiny_checkpoint: Path) -> Checkpoint:
    """The tiny checkpoint."""
    return Checkpoint.open(tiny_checkpoint)


@pytest.fixture(scope="session")
def tokenizer(tiny_checkpoint: Path) -> NvlmTokenizer:
    """Its tokenizer."""
    return NvlmTokenizer.load(tiny_checkpoint)


@pytest.fixture(scope="session")
def tiny_engine(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build of the tiny checkpoint leaves. Read only."""
    from .tiny_engine import build_tiny_engine, tiny_recipe  # only tests that serve it need what it imports

    out = tmp_path_factory.mktemp("engines") / "functional"
    build_tiny_engine(tiny_checkpoint, tiny_recipe(), out)
    return out


@pytest.fixture(scope="session")
def jpeg(photographs: dict[str, Image.Image]) -> Callable[[str], bytes]:
    """Photographs as JPEG files."""

    def encode(name: str) -> bytes:
        file = io.BytesIO()
        photographs[name].save(file, "JPEG", quality=90)
        return file.getvalue()

    return encode


@pytest.fixture(scope="session")
def nvlm_72b() -> Path:
    """Config, tensor index and tokenizer of nvidia/NVLM-D-72B, which the project does not ship."""
    default = Path(__file__).parents[2] / "shared" / "nvlm-d-72b"
    directory = Path(os.environ.get("NVLM_D_72B", default))
    if not (directory / "config.json").is_file():
        pytest.skip("needs the released NVLM-D-72B metadata: set NVLM_D_72B to a folder with its config and tokenizer")
    return directory

"""A real tritonserver on a tiny engine directory, shared by all functional tests."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image

from nvlm_trt.client import NvlmClient
from nvlm_trt.decoder.build_cpu import build_decoder_cpu
from nvlm_trt.decoder.convert import convert_decoder
from nvlm_trt.local import LocalEngine
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.tokenizer import NvlmTokenizer
from nvlm_trt.recipe import BuildRecipe, parse_recipe
from nvlm_trt.serving.host.ports import Ports
from nvlm_trt.serving.host.server import TritonServer
from nvlm_trt.serving.package import write_repository
from nvlm_trt.vision.build_cpu import build_vision_cpu
from nvlm_trt.vision.export import export_vision

from ..http_json import HttpAnswer, post_json

FREE_PORTS = Ports(http=0, grpc=0, metrics=0)


@pytest.fixture(scope="session")
def recipe() -> BuildRecipe:
    """Small limits, so that each of them can be met by a test."""
    return parse_recipe(
        {
            "name": "functional",
            "target": "cpu",
            "vision_precision": "fp32",
            "decoder_precision": "fp32",
            "max_batch_size": 8,
            "max_tiles": 6,
            "max_images": 3,
            "max_input_len": 512,
            "max_output_len": 400,
            "cpu_threads": 1,
        },
        "functional",
    )


@pytest.fixture(scope="session")
def engine_dir(tiny_checkpoint: Path, recipe: BuildRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build leaves, made by the stages themselves."""
    out = tmp_path_factory.mktemp("engines") / "functional"
    (out / "vision").mkdir(parents=True)
    checkpoint = Checkpoint.open(tiny_checkpoint)
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    (out / "config.json").write_bytes((tiny_checkpoint / "config.json").read_bytes())
    NvlmTokenizer.load(tiny_checkpoint)
    (out / "tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (out / "tokenizer" / name).write_bytes((tiny_checkpoint / name).read_bytes())
    export_vision(checkpoint, out / "vision", precision="fp32", output_dtype="fp32")
    build_vision_cpu(out / "vision" / "vision.onnx", out / "vision" / "cpu", precision="fp32")
    convert_decoder(checkpoint, out / "decoder" / "checkpoint", tp=1, pp=1, dtype="float32")
    build_decoder_cpu(
        out / "decoder" / "checkpoint",
        out / "decoder" / "cpu",
        precision="fp32",
        max_batch_size=recipe.max_batch_size,
        max_seq_len=recipe.max_input_len + recipe.max_output_len,
        max_prompt_table_rows=recipe.max_images * (recipe.max_tiles + 1) * 16,
    )
    write_repository(out, out / "triton_repo", recipe)
    return out


@pytest.fixture(scope="session")
def server(engine_dir: Path) -> Iterator[TritonServer]:
    """The server of most tests. Tests that hurt a server start one of their own."""
    with TritonServer(engine_dir, ports=FREE_PORTS) as running:
        yield running


@pytest.fixture
def client(server: TritonServer) -> Iterator[NvlmClient]:
    """A client of the shared server."""
    with NvlmClient(server.grpc_url, idle_timeout=60) as made:
        yield made


@pytest.fixture(scope="session")
def local(engine_dir: Path) -> Iterator[LocalEngine]:
    """The same engines without a server: what the server's answers must equal."""
    with LocalEngine(engine_dir) as engine:
        yield engine


@pytest.fixture(scope="session")
def jpeg(photographs: dict[str, Image.Image]) -> Callable[[str], bytes]:
    """Photographs as JPEG files."""

    def encode(name: str) -> bytes:
        file = io.BytesIO()
        photographs[name].save(file, "JPEG", quality=90)
        return file.getvalue()

    return encode


@pytest.fixture
def post(server: TritonServer) -> Callable[[str, object], HttpAnswer]:
    """Post a JSON body (or raw bytes) to a path below /v2 of the shared server."""
    return lambda path, body: post_json(server.http_url, path, body)

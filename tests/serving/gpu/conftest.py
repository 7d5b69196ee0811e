"""A repository of the gpu target on a real tritonserver, with stand-ins for its two engines and for mpirun."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from nvlm_trt.client import NvlmClient
from nvlm_trt.host.environment import Triton
from nvlm_trt.host.ports import Ports
from nvlm_trt.host.server import TritonServer
from nvlm_trt.local import LocalEngine
from nvlm_trt.recipe import BuildRecipe, parse_recipe
from nvlm_trt.serving.config import configs, from_pbtxt, to_pbtxt
from nvlm_trt.serving.package import write_repository
from nvlm_trt.serving.spec import PARAMETER_ENGINE, PARAMETER_SPEC, ServingSpec

from ...tiny_engine import build_tiny_engine

HERE = Path(__file__).parent
LIMITS = {"max_batch_size": 8, "max_tiles": 6, "max_images": 2, "max_input_len": 512, "max_output_len": 1500}


def recipe_of(target: str, **more: object) -> BuildRecipe:
    """A recipe with small limits."""
    return parse_recipe({"name": target, "target": target, **LIMITS, **more}, target)


@pytest.fixture(scope="session")
def engines(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine directory of the cpu target, in float32."""
    out = tmp_path_factory.mktemp("engines") / "cpu"
    recipe = recipe_of("cpu", vision_precision="fp32", decoder_precision="fp32", cpu_threads=1)
    build_tiny_engine(tiny_checkpoint, recipe, out)
    return out


@pytest.fixture(scope="session")
def gpu_engine(engines: Path) -> Path:
    """The same as an engine directory of the gpu target for two ranks, its engines replaced by stand-ins."""
    out = engines.parent / "gpu"
    shutil.copytree(engines, out, ignore=shutil.ignore_patterns("triton_repo"))
    recipe = recipe_of("gpu", tp=2, vision_engine={"max_tiles": 4}, cpu_threads=1)
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    (out / "vision" / "model.plan").touch()
    (out / "decoder" / "engine").mkdir()
    (out / "decoder" / "engine" / "config.json").write_text('{"pretrained_config": {"mapping": {"world_size": 2}}}')
    for rank in range(2):
        (out / "decoder" / "engine" / f"rank{rank}.engine").touch()
    write_repository(out, out / "triton_repo", recipe)
    spec = ServingSpec.of(out, recipe)
    for model in ("vision_encoder", "tensorrt_llm"):
        stand_in(out / "triton_repo" / model, spec)
    return out


def stand_in(model_dir: Path, spec: ServingSpec) -> None:
    """Let a Python model take an engine's place; inputs, outputs and batching stay as they are."""
    config = from_pbtxt((model_dir / "config.pbtxt").read_text())
    count = max(1, sum(len(group.gpus) for group in config.instance_group))
    config.backend = "python"
    config.ClearField("default_model_filename")
    config.ClearField("instance_group")
    config.instance_group.add(count=count, kind="KIND_CPU")
    python = configs(spec)["preprocessing"].parameters
    for key in (PARAMETER_ENGINE, PARAMETER_SPEC):
        config.parameters[key].string_value = python[key].string_value
    (model_dir / "config.pbtxt").write_text(to_pbtxt(config))
    shutil.copyfile(HERE / "stand_ins" / f"{model_dir.name}.py", model_dir / "1" / "model.py")


@pytest.fixture(scope="session")
def server(gpu_engine: Path) -> Iterator[TritonServer]:
    """Its server, which leaves no process behind."""
    path = os.environ["PATH"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{HERE}:{path}")
        with TritonServer(gpu_engine, ports=Ports(0, 0, 0), installation=Triton.find()) as running:
            processes = psutil.Process(running.process.pid).children(recursive=True)
            yield running
    assert not [process for process in processes if process.is_running()]


@pytest.fixture
def client(server: TritonServer) -> Iterator[NvlmClient]:
    """A client of the server."""
    with NvlmClient(server.grpc_url, idle_timeout=60) as made:
        yield made


class Rounded:
    """A vision encoder whose rows are rounded to bfloat16."""

    def __init__(self, encoder) -> None:
        self.encoder = encoder
        self.close = encoder.close

    def encode(self, tiles):
        return torch.from_numpy(self.encoder.encode(tiles)).to(torch.bfloat16).float().numpy()


@pytest.fixture(scope="session")
def local(engines: Path) -> Iterator[LocalEngine]:
    """What the server's answers must equal: the same engines in this process, with rows rounded to bfloat16."""
    with LocalEngine(engines) as engine:
        engine.vision = Rounded(engine.vision)
        yield engine

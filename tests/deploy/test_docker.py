"""The image and the compose file: pinned, without root or secrets, and made of what is there."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from nvlm_trt.environment.versions import PINNED_IMAGE, PINNED_TRITON, TENSORRT_LLM

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "build" / "docker"


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile with their words, lines joined and comments left out."""
    text = "\n".join(
        line for line in (DOCKER / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")
    )
    joined = re.sub(r"\\\n\s*", " ", text)
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def stage(name: str) -> list[tuple[str, str]]:
    """Instructions of one stage."""
    found, inside = [], False
    for word, rest in instructions():
        if word == "FROM":
            inside = rest.endswith(f" AS {name}")
        if inside:
            found.append((word, rest))
    return found


@pytest.fixture
def compose() -> dict:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


def test_the_base_image_is_nvidia_s_and_pinned_to_a_release_of_the_engine_flow():
    (argument,) = [rest for word, rest in instructions() if word == "ARG"]
    name, _, version = argument.partition("=")
    assert version in PINNED_TRITON
    first = next(rest for word, rest in instructions() if word == "FROM")
    assert first == f"nvcr.io/nvidia/tritonserver:${{{name}}}-trtllm-python-py3 AS installed"
    assert f"nvcr.io/nvidia/tritonserver:{version}-trtllm-python-py3" == PINNED_IMAGE
    assert "latest" not in (DOCKER / "Dockerfile").read_text()


@pytest.mark.parametrize("name", ["serve", "multinode"])
def test_what_runs_is_no_root_and_keeps_nvidia_s_entry_point(name):
    words = stage(name)
    assert words[0] == ("FROM", f"installed AS {name}")
    assert ("USER", "10001") in words
    after = [word for word, _ in words[words.index(("USER", "10001")) :]]
    assert "RUN" not in after
    assert not any(word == "ENTRYPOINT" for word, _ in instructions())


def test_a_build_without_a_target_makes_the_server():
    assert [rest for word, rest in instructions() if word == "FROM"][-1].endswith(" AS serve")


def test_everything_that_is_copied_exists_and_is_in_the_context():
    rules = (DOCKER / "Dockerfile.dockerignore").read_text().split("\n")
    kept = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
    assert "*" in rules
    for word, rest in instructions():
        if word != "COPY":
            continue
        *sources, _ = rest.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            assert any(source == rule or source.startswith(f"{rule}/") for rule in kept), source
    secret = [name for name in ("engines", ".git", "id_ed25519") if any(fnmatch.fnmatch(name, rule) for rule in kept)]
    assert not secret


def test_the_package_comes_without_its_dependencies_and_these_are_listed_with_its_own_bounds():
    assert any("pip install --no-deps /opt/nvlm-trt" in rest for word, rest in instructions() if word == "RUN")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [
        line for line in (DOCKER / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")
    ]
    kept = [line for line in project["dependencies"] if not line.startswith(("torch>", "numpy>"))]
    traces = project["optional-dependencies"]["trace"]
    assert sorted(listed, key=str.lower) == sorted([*kept, *traces], key=str.lower)
    assert len(kept) == len(project["dependencies"]) - 2


@pytest.mark.parametrize(
    ("version", "kept"),
    [
        ("torch==2.10.0a0+b4e4ee8", True),
        ("numpy==1.26.4", True),
        ("tensorrt_llm==1.2.1", True),
        ("tensorrt==10.14.1.48", True),
        ("nvidia-modelopt==0.37.0", True),
        ("onnx==1.19.1", True),
        ("tritonclient==2.68.0", False),
        ("pillow==11.3.0", False),
    ],
)
def test_what_engines_depend_on_stays_as_the_image_has_it(version: str, kept: bool, tmp_path: Path):
    """The interpreter is one that says what is installed and keeps the constraints of what it is to install."""
    image = tmp_path / "python"
    image.write_text(
        f"""#!/usr/bin/env bash
        case "$*" in
            *"pip list"*) echo "{version}"; echo torch==2.10.0 ;;
            *"pip install"*) while [ "$1" != --constraint ]; do shift; done; cat "$2"; shift 2; cat "${{@: -1}}" ;;
        esac"""
    )
    image.chmod(0o755)
    done = subprocess.run([DOCKER / "add_libraries.sh", image], check=True, capture_output=True, text=True)
    constrained, _, asked = done.stdout.partition("# ")
    assert (version in constrained.splitlines()) == kept
    assert "typer" in asked


def test_the_health_check_asks_the_gateway_and_waits_for_loading():
    (check,) = [rest for word, rest in stage("serve") if word == "HEALTHCHECK"]
    assert "127.0.0.1:8000/v2/health/ready" in check
    assert "--start-period=60m" in check
    code = re.search(r'"-c", "(.*)"\]', check)
    assert code
    compile(code[1], "healthcheck", "exec")


def test_nothing_that_looks_like_a_secret_is_in_the_files():
    for file in DOCKER.iterdir():
        assert not re.search(r"(?i)(password|token|api_key)\s*[=:]\s*\S", file.read_text()), file.name


def test_both_services_use_the_dockerfile_and_have_gpus_and_what_ranks_need(compose):
    for service in compose["services"].values():
        build = service["build"]
        assert (DOCKER / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]).is_file()
        assert ("FROM", f"installed AS {build['target']}") in instructions()
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", "all", ["gpu"])
        assert service["ulimits"] == {"memlock": -1, "stack": 64 * 2**20}
        assert service["shm_size"] == "16gb"
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_the_checkpoint_is_read_only_and_serving_writes_no_engines(compose):
    mounts = {
        (name, mount["target"]): mount.get("read_only", False)
        for name, service in compose["services"].items()
        for mount in service["volumes"]
    }
    assert mounts == {("build", "/checkpoint"): True, ("build", "/engines"): False, ("serve", "/engines"): True}


def test_only_the_gateway_is_published_and_on_loopback(compose):
    assert compose["services"]["serve"]["ports"] == ["127.0.0.1:8000:8000"]
    assert "ports" not in compose["services"]["build"]


def test_the_services_run_verbs_with_options_that_these_have(compose):
    for name, service in compose["services"].items():
        program, verb, *rest = service["command"]
        assert (program, verb) == ("nvlm-trt", name)
        options = {word for word in rest if word.startswith("--")}
        shown = subprocess.run(
            [sys.executable, "-m", "nvlm_trt.cli.main", verb, "--help"], capture_output=True, text=True, check=True
        )
        assert options <= set(re.findall(r"--[a-z-]+", shown.stdout)), options


def test_the_server_has_its_grace_before_docker_kills_it(compose):
    service = compose["services"]["serve"]
    grace = float(service["command"][service["command"].index("--grace") + 1])
    assert grace + 10 < float(service["stop_grace_period"].removesuffix("s"))


@pytest.mark.parametrize(
    ("tensorrt_llm", "torch", "tokenizers"),
    [("1.0.0", "2.8.0a0", "0.21.4"), ("1.1.0", "2.9.0a0", "0.22.0"), ("1.2.1", "2.10.0a0+b4e4ee8", "0.22.1")],
)
def test_every_image_whose_tensorrt_llm_is_taken_passes_the_check_at_the_end_of_its_build(
    tensorrt_llm, torch, tokenizers, monkeypatch
):
    """NVIDIA's own builds of torch: 2.9.0a0 comes before 2.9."""
    faults = runpy.run_path(str(DOCKER / "check_requirements.py"))["faults"]
    real, theirs = importlib.metadata.version, {"torch": torch, "tokenizers": tokenizers}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: theirs.get(name) or real(name))
    assert (faults("nvlm-trt") == []) == (tensorrt_llm in TENSORRT_LLM)


def test_wrong_packages_of_an_image_are_named(monkeypatch):
    faults = runpy.run_path(str(DOCKER / "check_requirements.py"))["faults"]
    assert faults("nvlm-trt") == []
    versions = {"pillow": "11.3.0", "torch": "2.10.0a0+b4e4ee8"}
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "typer":
            raise importlib.metadata.PackageNotFoundError(name)
        return versions.get(name.lower()) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    old, missing = faults("nvlm-trt")
    assert "does not fit (seen: 11.3.0" in old
    assert "typer is missing" in missing

"""`nvlm-trt serve` refuses engines of another machine before it starts anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nvlm_trt.environment.built_with import BUILT_WITH, BuiltWith

Run = Callable[..., Any]


@pytest.fixture
def packaged(small_recipe: Path, tmp_path: Path) -> Path:
    """As much of an engine directory as a dry run looks at."""
    engine = tmp_path / "engine"
    (engine / "triton_repo").mkdir(parents=True)
    (engine / "recipe.yaml").write_text(small_recipe.read_text())
    return engine


@pytest.fixture
def for_gpu(packaged: Path) -> Path:
    """The same with the record of a decoder that another machine built."""
    built = BuiltWith("10.14.1.48", "1.2.1", "580.65.06", "13.0", "NVIDIA H100", 90, 4)
    (packaged / "decoder" / "engine").mkdir(parents=True)
    (packaged / "decoder" / "engine" / BUILT_WITH).write_text(json.dumps(built.to_dict()))
    return packaged


def test_engines_of_another_machine_are_refused_by_name(nvlm_trt: Run, for_gpu: Path) -> None:
    (for_gpu / "recipe.yaml").write_text("target: gpu\n")
    shown = nvlm_trt("serve", for_gpu)
    assert shown.code == 2
    assert "decoder/engine was built by TensorRT 10.14.1.48 and is met by none" in shown.err
    assert "decoder/engine was built for NVIDIA H100" in shown.err


def test_what_is_left_of_a_build_for_gpus_does_not_keep_the_cpu_target_from_serving(
    nvlm_trt: Run, for_gpu: Path
) -> None:
    shown = nvlm_trt("serve", for_gpu)
    assert "built by TensorRT" not in shown.err
    assert "config.json" in shown.err, "the next check: this directory has no more than a dry run looks at"


def test_a_dry_run_shows_the_gateway_and_its_limits(nvlm_trt: Run, packaged: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-key-that-is-long-enough\n")
    words = ("--api-keys", keys, "--image-domain", "*.a.example", "--limit", "max_queue=3", "--host", "0.0.0.0")
    facts = nvlm_trt("serve", packaged, "--dry-run", "--json", *words).json
    shown = facts["gateway"]
    assert (shown["api_keys"], shown["image_domains"], shown["max_queue"]) == (1, "*.a.example", 3)
    assert shown["api_key_file"] == str(keys)
    assert "--grpc-address=127.0.0.1" in facts["command"]
    assert "a-key-that-is-long-enough" not in str(facts)
    assert (shown["key_per_minute"], shown["key_concurrent"]) == (None, None)
    assert "key_per_minute none, key_concurrent none" in nvlm_trt("serve", packaged, "--dry-run").err


def test_without_the_gateway_its_options_are_refused(nvlm_trt: Run, packaged: Path) -> None:
    facts = nvlm_trt("serve", packaged, "--dry-run", "--json", "--no-gateway").json
    assert facts["gateway"] is None
    shown = nvlm_trt("serve", packaged, "--dry-run", "--no-gateway", "--limit", "max_queue=3")
    assert shown.code == 2
    assert "nobody heeds" in shown.err


def test_a_limit_that_is_none_is_the_users_mistake(nvlm_trt: Run, packaged: Path) -> None:
    shown = nvlm_trt("serve", packaged, "--dry-run", "--limit", "max_queu=3")
    assert shown.code == 2
    assert "did you mean max_queue?" in shown.err


def test_an_engine_that_another_version_packaged_is_refused(
    nvlm_trt: Run, packaged: Path, tiny_checkpoint: Path
) -> None:
    (packaged / "config.json").write_bytes((tiny_checkpoint / "config.json").read_bytes())
    shown = nvlm_trt("serve", packaged)  # its repository lacks every model
    assert shown.code == 2
    assert "packaged by another version of nvlm-trt" in shown.err
    assert f"package it again: nvlm-trt build RECIPE --output {packaged}" in shown.err


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--otlp-endpoint", "collector:4318"), "the OTLP endpoint is no URL"),
        (("--http-port", 8001), "two services cannot share a port"),
        (("--hostfile", "/nope"), "this engine has one; seen: --hostfile /nope"),
    ],
)
def test_an_option_that_no_start_could_use_is_refused_in_a_dry_run_too(
    nvlm_trt: Run, packaged: Path, words: tuple[object, ...], sentence: str, dry: tuple[str, ...]
) -> None:
    shown = nvlm_trt("serve", packaged, *words, *dry)
    assert shown.code == 2
    assert sentence in shown.err


def test_events_that_nobody_reads_any_more_do_not_end_the_server() -> None:
    """Supervision tells them from its own thread, which has to go on."""
    program = "from nvlm_trt.cli.serve import _tell\nfor _ in range(3): _tell('ready')\nprint('done')"
    reading, writing = os.pipe()
    os.close(reading)
    full = os.open("/dev/full", os.O_WRONLY)
    for nobody in (writing, full):
        ended = subprocess.run([sys.executable, "-c", program], stdout=nobody, stderr=subprocess.PIPE, check=False)
        os.close(nobody)
        assert (ended.returncode, ended.stderr) == (0, b"")

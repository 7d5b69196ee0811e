"""The examples in examples/ run as they are."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
QUESTION = "What is in this picture?"


@pytest.fixture
def photograph(tmp_path: Path, jpeg) -> Path:
    path = tmp_path / "coffee.jpg"
    path.write_bytes(jpeg("coffee"))
    return path


@pytest.fixture
def answer(client, photograph) -> str:
    from nvlm_trt.client import Options

    return client.generate(QUESTION, images=[photograph], options=Options(max_tokens=32)).text


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(server, photograph, answer):
    ran = subprocess.run(
        [EXAMPLES / "curl.sh", server.http_url, photograph, QUESTION],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    whole, *events = [line for line in ran.stdout.splitlines() if line]
    assert json.loads(whole)["text_output"] == answer
    pieces = [json.loads(event.removeprefix("data: "))["text_output"] for event in events]
    assert "".join(pieces) == answer


def test_plain_tritonclient(server, photograph, answer):
    command = [sys.executable, EXAMPLES / "plain_tritonclient.py", server.grpc_url, photograph, QUESTION]
    ran = subprocess.run(command, capture_output=True, timeout=60, check=True)
    assert ran.stdout.decode() == answer + "\n"


def test_chat(server, photograph, answer):
    command = [sys.executable, "-m", "nvlm_trt.cli.main", "chat", "--url", server.grpc_url]
    command += ["--prompt", QUESTION, "--image", str(photograph), "--max-tokens", "32"]
    ran = subprocess.run(command, capture_output=True, timeout=60, check=True)
    assert ran.stdout.decode() == answer + "\n"

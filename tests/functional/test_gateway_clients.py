"""Clients that know nothing of this project, unmodified: OpenAI's asyncio client, AIPerf, perf_analyzer.

The two load generators run where they are on the PATH: each has needs that this project does not share. docs/gateway.md
says how to get them.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import openai
import pytest
from PIL import Image

from nvlm_trt.client import NvlmClient, Options
from nvlm_trt.model.tokenizer import build_bpe, read_merges
from nvlm_trt.serving.host.server import TritonServer

REQUESTS = 12
AIPERF = ("--ui", "none", "--no-gpu-telemetry", "--workers-max", "1", "--record-processors", "1")
AIPERF += ("--num-dataset-entries", "4", "--request-count", str(REQUESTS), "--concurrency", "2")
AIPERF += ("--synthetic-input-tokens-mean", "20", "--output-tokens-mean", "8", "--streaming")


def needs(name: str, how: str) -> pytest.MarkDecorator:
    """Skip where a client is not on the PATH."""
    return pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not on the PATH: {how}")


def test_many_streams_of_one_asyncio_client_are_each_its_own(server: TritonServer, client: NvlmClient) -> None:
    questions = [f"Question {number}" for number in range(6)]

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"http://{server.http_url}/v1", api_key="none", max_retries=0) as asked:

            async def ask(question: str) -> str:
                stream = await asked.chat.completions.create(
                    model="nvlm", messages=[{"role": "user", "content": question}], max_tokens=10, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*map(ask, questions))

    expected = [client.generate(question, options=Options(max_tokens=10)).text for question in questions]
    assert asyncio.run(ask_all()) == expected


@pytest.fixture(scope="module")
def tokenizer(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The engine's tokenizer as transformers reads it."""
    folder, source = tmp_path_factory.mktemp("tokenizer"), engine_dir / "tokenizer"
    settings = json.loads((source / "tokenizer_config.json").read_text())
    added = {int(index): token for index, token in settings["added_tokens_decoder"].items()}
    vocabulary = json.loads((source / "vocab.json").read_text())
    build_bpe(vocabulary, read_merges((source / "merges.txt").read_text()), added).save(str(folder / "tokenizer.json"))
    shutil.copy(source / "tokenizer_config.json", folder)
    return folder


@pytest.fixture
def aiperf(server: TritonServer, tokenizer: Path, tmp_path: Path) -> Callable[..., dict[str, dict[str, float]]]:
    """Run AIPerf; its figures."""

    def run(*options: str) -> dict[str, dict[str, float]]:
        out = tmp_path / "out"
        command = ["aiperf", "profile", "--model", "nvlm", "--url", f"http://{server.http_url}"]
        command += ["--tokenizer", str(tokenizer), "--artifact-dir", str(out), *AIPERF, *options]
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
        figures: dict[str, dict[str, float]] = json.loads((out / "profile_export_aiperf.json").read_text())
        return figures

    return run


@needs("aiperf", "pip install aiperf, in an environment of its own")
def test_aiperf_chats_about_images(
    aiperf: Callable[..., dict[str, dict[str, float]]], photographs: dict[str, Image.Image], tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    photographs["chelsea"].save(pictures / "chelsea.png")
    images = ("--image-width-mean", "64", "--image-height-mean", "64", "--image-source", str(pictures))
    figures = aiperf("--endpoint-type", "chat", "--extra-inputs", "ignore_eos:true", *images)
    assert figures["request_count"]["avg"] == REQUESTS
    assert not figures.get("error_request_count", {}).get("avg")
    assert figures["output_token_count"]["avg"] > 0


@needs("aiperf", "pip install aiperf, in an environment of its own")
def test_aiperf_asks_kserves_stream_by_a_template(
    aiperf: Callable[..., dict[str, dict[str, float]]], tmp_path: Path
) -> None:
    template = tmp_path / "body.json"
    template.write_text('{"text_input": {{ text|tojson }}, "max_tokens": {{ max_tokens }}, "stream": true}')
    figures = aiperf(
        *("--endpoint-type", "template", "--endpoint", "/v2/models/nvlm/generate_stream"),
        *("--extra-inputs", f"payload_template:{template}", "--extra-inputs", "response_field:text_output"),
    )
    assert figures["request_count"]["avg"] == REQUESTS
    assert not figures.get("error_request_count", {}).get("avg")


@needs("perf_analyzer", "the wheel tritonclient 2.51 carries it")
@pytest.mark.parametrize("way", ["gRPC", "OpenAI"])
def test_perf_analyzer_finds_no_error(server: TritonServer, tmp_path: Path, way: str) -> None:
    data = tmp_path / "input.json"
    if way == "gRPC":
        entry = {"text_input": ["What?"], "max_tokens": [4], "stream": [True]}
        options = ["-i", "grpc", "-u", server.grpc_url, "--async", "--streaming"]
    else:  # it streams over gRPC alone
        messages = [{"role": "user", "content": "What?"}]
        entry = {"payload": [{"model": "nvlm", "messages": messages, "max_tokens": 4}]}  # type: ignore[dict-item]
        options = ["--service-kind", "openai", "--endpoint", "v1/chat/completions", "-u", server.http_url, "--async"]
    data.write_text(json.dumps({"data": [entry]}))
    counted = ["--concurrency-range", "2:2", "--request-count", str(REQUESTS), "--input-data", str(data)]
    command = ["perf_analyzer", "-m", "nvlm", *options, *counted]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    assert "Failed" not in ran.stdout
    assert re.search(r"throughput: [1-9]", ran.stdout)

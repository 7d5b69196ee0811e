"""Clients that know nothing of this project, unmodified: OpenAI's asyncio client, AIPerf, perf_analyzer, lmms-eval.

All but the first run where they are on the PATH: each has needs that this project does not share. docs/gateway.md says
how to get them.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import openai
import pytest
from PIL import Image

from nvlm_trt.client import NvlmClient, Options
from nvlm_trt.host.server import TritonServer
from nvlm_trt.miniature.shipped import GATE_TASK
from nvlm_trt.model.tokenizer import build_bpe, read_merges

ROOT = Path(__file__).parents[2]
SECONDS = 400
"""A client that has not ended by then hangs."""

REQUESTS = 12
AIPERF = ("--ui", "none", "--no-gpu-telemetry", "--workers-max", "1", "--record-processors", "1")
AIPERF += ("--num-dataset-entries", "4", "--request-count", str(REQUESTS), "--concurrency", "2")
AIPERF += ("--synthetic-input-tokens-mean", "20", "--output-tokens-mean", "8", "--streaming")


def needs(name: str, how: str) -> pytest.MarkDecorator:
    """Skip where a client is not on the PATH."""
    return pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not on the PATH: {how}")


def output_of(command: list[str], environment: dict[str, str] | None = None) -> str:
    """What a program prints; one that fails, or hangs, fails the test with its last words."""
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=SECONDS)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    return ran.stdout


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
        output_of(command, environment)
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
    assert figures["request_error_rate"]["avg"] == 0
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
    assert figures["request_error_rate"]["avg"] == 0
    assert figures["output_token_count"]["avg"] > 0  # the text was found in the events


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
    printed = output_of(["perf_analyzer", "-m", "nvlm", *options, *counted])
    assert "Failed" not in printed
    assert re.search(r"throughput: [1-9]", printed)


@pytest.fixture
def task(tmp_path: Path, client: NvlmClient) -> Path:
    """A task of eight pictures, half of whose right answers are what the engine says; `images` are absolute paths."""
    lines = []
    for number, line in enumerate(GATE_TASK.read_text(encoding="utf-8").splitlines()[:8]):
        asked = json.loads(line)
        images = [GATE_TASK.parent / name for name in asked["images"]]
        files = [image.read_bytes() for image in images]
        said = client.generate(asked["question"], images=files, options=Options(max_tokens=asked["max_tokens"])).text
        answers = [said if number % 2 else f"not {said}"]
        lines.append(json.dumps({**asked, "images": [str(image) for image in images], "answers": answers}))
    file = tmp_path / "task.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


@needs("lmms-eval", "docs/gateway.md says how to install it, in an environment of its own")
def test_lmms_eval_gets_the_answers_and_the_score_of_nvlm_trt_eval(
    server: TritonServer, task: Path, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "examples" / "lmms_eval", tmp_path / "tasks")
    config = tmp_path / "tasks" / "nvlm_mini_gate.yaml"
    shipped = f"test: {GATE_TASK.relative_to(ROOT)}\n"
    assert shipped in config.read_text()
    config.write_text(config.read_text().replace(shipped, f"test: {task}\n"))
    command = ["lmms-eval", "eval", "--model", "openai", "--tasks", "nvlm_mini_gate"]
    command += ["--model_args", f"model_version=nvlm,base_url=http://{server.http_url}/v1"]
    command += ["--include_path", str(tmp_path / "tasks"), "--output_path", str(tmp_path / "out"), "--log_samples"]
    settings = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none"}
    output_of(command, {**os.environ, **settings})
    (figures,) = (json.loads(file.read_text()) for file in (tmp_path / "out").rglob("*_results.json"))
    (samples,) = (tmp_path / "out").rglob("*_samples_*.jsonl")
    answers = [json.loads(line)["filtered_resps"] for line in samples.read_text(encoding="utf-8").splitlines()]

    command = [str(Path(sys.executable).with_name("nvlm-trt")), "eval", "--url", server.grpc_url, "--task", str(task)]
    ours = json.loads(output_of([*command, "--output", str(tmp_path / "ours"), "--json"]))
    lines = (tmp_path / "ours" / "records.jsonl").read_text(encoding="utf-8").splitlines()
    expected = {record["id"]: record["text"] for record in map(json.loads, lines)}
    assert [answer.strip() for answer in answers] == [expected[name].strip() for name in sorted(expected)]
    assert figures["results"]["nvlm_mini_gate"]["exact,none"] == ours["overall"]["mean"] == 0.5

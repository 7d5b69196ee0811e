"""What is refused before a clock runs."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nvlm_trt.bench.plan import Request, make_plan
from nvlm_trt.bench.subjects import Dtype, OpenedEngine, ReferenceSubject, ServerSubject, size_of
from nvlm_trt.bench.workload import Workload
from nvlm_trt.errors import EngineError, ImageRejected, UserError
from nvlm_trt.model.checkpoint import Checkpoint

from .engines import NVIDIA_SMI, copied, gpu_engine, on_path

SMALL = Workload(max_tokens=2, columns=1)


@pytest.fixture
def request_of(small_engine: Path) -> Request:
    return Request(
        engines=(small_engine,),
        grpc_url=None,
        http_url=None,
        transports=("local",),
        baselines=("bf16",),
        checkpoint=None,
        workload=SMALL,
        rounds=1,
        task=None,
        task_limit=None,
        tools=(),
    )


def test_a_plan_knows_its_subjects_its_prompt_and_its_checkpoint(request_of: Request, tiny_checkpoint: Path) -> None:
    plan = make_plan(dataclasses.replace(request_of, baselines=("bf16", "fp32"), transports=("local", "grpc")))
    assert [subject.name for subject in plan.subjects] == ["torch bf16", "torch fp32", "small", "small (grpc)"]
    reference = plan.subjects[0]
    assert isinstance(reference, ReferenceSubject)
    assert reference.checkpoint == tiny_checkpoint
    assert plan.bounds.tile_size == 112
    assert plan.prompt_tokens is not None
    assert plan.prompt_tokens > 16  # one tile has 16 visual tokens
    assert plan.device == "cpu"


def test_more_tiles_make_a_longer_prompt(request_of: Request) -> None:
    lengths = []
    for columns in (1, 2):
        workload = SMALL.model_copy(update={"columns": columns})
        lengths.append(make_plan(dataclasses.replace(request_of, workload=workload)).prompt_tokens)
    text = make_plan(dataclasses.replace(request_of, workload=SMALL.model_copy(update={"text_only": True})))
    assert None not in (*lengths, text.prompt_tokens)
    assert text.prompt_tokens < lengths[0] < lengths[1]  # type: ignore[operator]


def test_scenarios_ask_for_what_every_engine_takes(request_of: Request, small_engine: Path, tmp_path: Path) -> None:
    other = copied(small_engine, tmp_path / "other", max_batch_size=5, max_input_len=200, max_tiles=3)
    asked = dataclasses.replace(
        request_of, engines=(small_engine, other), transports=("local", "grpc"), baselines=("bf16",)
    )
    plan = make_plan(asked)
    reference, local, served = (plan.bounds_of(subject) for subject in plan.subjects[:3])
    assert (local.streams, local.prompt_tokens, local.answer_tokens, local.total_tokens) == (2, 200, 16, 216)
    assert list(local.grids) == [1, 3, 4]
    assert (local.tile_size, local.tokens_per_tile) == (112, 16)
    assert (reference.streams, served.streams) == (1, 2)  # the reference does not batch
    assert (local.served, served.served) == (False, True)


def test_of_a_server_alone_the_release_s_shapes_are_taken(request_of: Request) -> None:
    plan = make_plan(dataclasses.replace(request_of, engines=(), baselines=(), grpc_url="127.0.0.1:1"))
    assert plan.bounds_of(plan.subjects[0]).most_tiles == 7
    assert plan.bounds_of(plan.subjects[0]).tile_size == 448


def test_the_size_on_disk_is_of_what_serving_reads(small_engine: Path) -> None:
    engine = OpenedEngine(small_engine)
    parts = ("config.json", "tokenizer", "vision/cpu", "decoder/cpu")
    assert engine.size_bytes == sum(size_of(small_engine / part) for part in parts)
    assert engine.size_bytes < size_of(small_engine)  # without the checkpoint that it was compiled from
    assert engine.precision == "vision fp32, decoder fp32"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"engines": ()}, "nothing to measure"),
        ({"engines": (Path("nowhere"),)}, "no engine directory"),
        ({"grpc_url": "nosuch"}, "no address of a server; seen: nosuch; expected: HOST:PORT of its gRPC"),
        (
            {"http_url": "http://there:1"},
            "no address of a server; seen: http://there:1; expected: HOST:PORT of its HTTP",
        ),
        ({"checkpoint": Path("nowhere")}, "the checkpoint that the baseline reads is not there"),
        ({"workload": SMALL.model_copy(update={"max_tokens": 17})}, "answers are longer"),
        ({"workload": SMALL.model_copy(update={"columns": 2, "rows": 1, "prompt": "a " * 600})}, "does not fit small"),
        (
            {"workload": SMALL.model_copy(update={"columns": 12, "rows": 12})},
            "into another grid; seen: --columns 12 --rows 12, cut .*; expected: .* at most 6 tiles",
        ),
        ({"workload": SMALL.model_copy(update={"images": (Path("nowhere.jpg"),)})}, "cannot be read"),
        ({"task": Path("nowhere.jsonl")}, "task cannot be read"),
        ({"tools": ("perf_analyzer",)}, "perf_analyzer is not on PATH"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    fields: dict[str, Any], message: str, request_of: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=message):
        make_plan(dataclasses.replace(request_of, **fields))


def test_an_image_that_an_engine_does_not_take_is_named(request_of: Request, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.new("RGB", (300, 200)).save(good)
    bad.write_bytes(b"")
    with pytest.raises(ImageRejected, match=r"bad\.png: the image is empty"):
        make_plan(dataclasses.replace(request_of, workload=SMALL.model_copy(update={"images": (good, bad)})))


def test_two_engines_of_one_name_are_refused(request_of: Request, small_engine: Path, tmp_path: Path) -> None:
    other = copied(small_engine, tmp_path / "small")
    with pytest.raises(UserError, match="one name; seen: small"):
        make_plan(dataclasses.replace(request_of, engines=(small_engine, other)))


def test_servers_are_started_for_the_engines_that_are_named(
    request_of: Request, small_engine: Path, tmp_path: Path
) -> None:
    engines = (small_engine, copied(small_engine, tmp_path / "other"))
    asked = dataclasses.replace(request_of, engines=engines, baselines=(), transports=("local", "grpc"))
    plan = make_plan(dataclasses.replace(asked, served=frozenset({"other"})))
    assert [subject.name for subject in plan.subjects] == ["small", "other", "other (grpc)"]
    with pytest.raises(UserError, match="no such engine to serve; seen: othre; expected: other, small"):
        make_plan(dataclasses.replace(asked, served=frozenset({"othre"})))


def test_engines_of_the_gpu_target_are_asked_through_a_server(
    request_of: Request, small_engine: Path, tmp_path: Path
) -> None:
    gpu = gpu_engine(small_engine, tmp_path)
    with pytest.raises(UserError, match="run inside a server"):
        make_plan(dataclasses.replace(request_of, engines=(gpu,), baselines=()))
    plan = make_plan(dataclasses.replace(request_of, engines=(gpu,), transports=("grpc",), baselines=()))
    assert plan.device == "cuda"
    rest = size_of(gpu / "config.json") + size_of(gpu / "tokenizer")
    assert plan.engines[gpu].size_bytes == rest + len(b"engine") + len(b"plan")
    both = dataclasses.replace(request_of, engines=(gpu, small_engine), transports=("grpc",), baselines=())
    with pytest.raises(UserError, match="two targets"):
        make_plan(both)


def test_an_engine_that_is_not_complete_is_refused(small_engine: Path, tmp_path: Path) -> None:
    broken = copied(small_engine, tmp_path / "broken")
    (broken / "tokenizer").unlink()
    with pytest.raises(EngineError, match="without tokenizer"):
        OpenedEngine(broken)


def test_engines_of_different_checkpoints_are_remarked_upon(
    request_of: Request, small_engine: Path, tmp_path: Path
) -> None:
    other = copied(small_engine, tmp_path / "other")
    (other / "manifest.json").unlink()
    plan = make_plan(dataclasses.replace(request_of, engines=(small_engine, other)))
    assert any("different checkpoints" in remark for remark in plan.remarks)
    assert not any("different checkpoints" in remark for remark in make_plan(request_of).remarks)


def test_a_tool_needs_the_transport_that_it_speaks(
    request_of: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("perf_analyzer", "aiperf"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="add --transport grpc"):
        make_plan(dataclasses.replace(request_of, tools=("perf_analyzer",)))
    with pytest.raises(UserError, match="needs the tokenizer"):
        make_plan(dataclasses.replace(request_of, engines=(), tools=("aiperf",), http_url="127.0.0.1:1"))
    others = request_of.workload.model_copy(update={"scenarios": ("repeat",)})
    with pytest.raises(UserError, match="add --scenario load"):
        make_plan(dataclasses.replace(request_of, transports=("grpc",), tools=("perf_analyzer",), workload=others))
    plan = make_plan(
        dataclasses.replace(request_of, transports=("grpc", "http"), tools=("perf_analyzer", "aiperf"), baselines=())
    )
    assert [plan.tools_of(subject) for subject in plan.subjects] == [("perf_analyzer",), ("aiperf",)]


@pytest.fixture
def on_gpu(request_of: Request, small_engine: Path, tmp_path: Path) -> Request:
    """A gpu engine through its server, beside the baseline."""
    return dataclasses.replace(request_of, engines=(gpu_engine(small_engine, tmp_path),), transports=("grpc",))


def test_the_baseline_of_a_gpu_engine_is_on_the_gpu(
    on_gpu: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path(tmp_path, "nvidia-smi", NVIDIA_SMI.format(folder=tmp_path, mebibytes=81559), monkeypatch)
    plan = make_plan(on_gpu)
    assert [subject.name for subject in plan.subjects] == ["torch bf16", "gpu (grpc)"]
    assert [subject.device for subject in plan.subjects if not isinstance(subject, ServerSubject)] == ["cuda", "cuda"]


def test_a_baseline_that_no_gpu_holds_is_refused(
    on_gpu: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"needs a GPU; seen: nvidia-smi is not on PATH.*--baseline none"):
        make_plan(on_gpu)
    on_path(tmp_path, "nvidia-smi", NVIDIA_SMI.format(folder=tmp_path, mebibytes=4096), monkeypatch)
    monkeypatch.setenv("PATH", os.defpath, prepend=os.pathsep)
    with pytest.raises(UserError, match=r"does not fit the GPU; seen: 4\.\d GiB.*at most 4\.0 GiB.*--baseline none"):
        make_plan(on_gpu)


@pytest.mark.parametrize(("dtype", "room"), [("bf16", True), ("fp32", False)])
def test_whether_the_baseline_fits_depends_on_its_dtype(
    dtype: Dtype, room: bool, on_gpu: Request, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elements = sum(math.prod(info.shape) for info in Checkpoint.open(tiny_checkpoint).tensors.values())
    mebibytes = 4096 + 3 * elements // 2**20  # between 2 and 4 bytes an element
    on_path(tmp_path, "nvidia-smi", NVIDIA_SMI.format(folder=tmp_path, mebibytes=mebibytes), monkeypatch)
    asked = dataclasses.replace(on_gpu, baselines=(dtype,))
    if room:
        assert make_plan(asked).subjects[0].name == "torch bf16"
    else:
        with pytest.raises(UserError, match="the baseline in fp32 does not fit the GPU"):
            make_plan(asked)

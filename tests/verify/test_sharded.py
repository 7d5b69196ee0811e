"""Running a converted decoder rank by rank, and what that catches."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from nvlm_trt.decoder.convert import convert_decoder
from nvlm_trt.decoder.precision import FP32, STORED_DTYPES, Precision
from nvlm_trt.emulation.rank import RankDecoder
from nvlm_trt.errors import CheckpointError, FaultError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.decoder import DecoderReference
from nvlm_trt.model.synthetic import tiny_spec, write_synthetic
from nvlm_trt.verify.gates import SHARDED_GATES, judge
from nvlm_trt.verify.sharded import Prompt, precision_distance, run_sharded
from nvlm_trt.verify.sharded_report import PromptAgreement, ShardedReport
from nvlm_trt.verify.sharded_worker import Job, run_rank

LAYER = "transformer.layers.1."
VOCAB = 203


def make_source(directory: Path, kv_heads: int) -> Checkpoint:
    spec = tiny_spec(
        tile_size=28,
        vision_heads=1,
        vision_layers=1,
        dummy_heads=0,
        hidden_size=64,
        intermediate_size=96,
        decoder_layers=5,
        heads=8,
        kv_heads=kv_heads,
        vocab_size=VOCAB,
    )
    write_synthetic(directory, spec)
    return Checkpoint.open(directory)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Checkpoint]:
    """Five layers and an odd vocabulary, by the number of kv heads."""
    root = tmp_path_factory.mktemp("sources")
    return {kv_heads: make_source(root / f"kv{kv_heads}", kv_heads) for kv_heads in (2, 4)}


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    """A text, and a text around nine rows of a prompt table."""
    generator = np.random.default_rng(7)
    before, after = generator.integers(0, VOCAB, 4), generator.integers(0, VOCAB, 5)
    table = generator.standard_normal((9, 64), dtype=np.float32)
    mixed = np.concatenate([before, VOCAB + np.arange(9), after]).astype(np.int32)
    return [(list(generator.integers(0, VOCAB, 13)), None), (mixed, table)]


@pytest.fixture
def converted(sources: dict[int, Checkpoint], tmp_path: Path) -> Path:
    """A tp 2 conversion with 4 kv heads, for one test to damage."""
    convert_decoder(sources[4], tmp_path / "converted", tp=2, pp=1, precision=FP32)
    return tmp_path / "converted"


def passes(report: ShardedReport) -> bool:
    """Whether the gates of the cpu target let it pass."""
    return all(check.ok for check in judge("sharded", SHARDED_GATES, report.figures()))


@pytest.mark.parametrize(
    ("tp", "pp", "kv_heads", "dtype"),
    [
        (1, 1, 2, "float32"),
        (2, 1, 4, "bfloat16"),
        (4, 1, 2, "bfloat16"),
        (8, 1, 4, "float16"),
        (2, 2, 2, "bfloat16"),
        (1, 3, 4, "float32"),
    ],
)
def test_the_ranks_together_compute_the_decoder(
    sources: dict[int, Checkpoint], prompts: list[Prompt], tmp_path: Path, tp: int, pp: int, kv_heads: int, dtype: str
) -> None:
    convert_decoder(sources[kv_heads], tmp_path, tp=tp, pp=pp, precision=Precision(STORED_DTYPES[dtype]))
    report = precision_distance(sources[kv_heads], tmp_path, prompts=prompts, timeout=120)
    assert passes(report)
    assert (report.tp, report.pp, report.yardsticks) == (tp, pp, ())
    assert [each.tokens for each in report.prompts] == [13, 18]
    assert report.max_rel_error < 1e-5
    assert report.argmax_agreement == 1.0


Damage = Callable[[list[dict[str, torch.Tensor]]], None]


def swap_fc_and_gate(ranks: list[dict[str, torch.Tensor]]) -> None:
    for rank in ranks:
        fc, gate = f"{LAYER}mlp.fc.weight", f"{LAYER}mlp.gate.weight"
        rank[fc], rank[gate] = rank[gate], rank[fc]


def drop_a_kv_head(ranks: list[dict[str, torch.Tensor]]) -> None:
    """The second of a rank's two key heads (8 wide, after 32 rows of q) becomes a copy of the first."""
    rows = ranks[0][f"{LAYER}attention.qkv.weight"]
    rows[40:48] = rows[32:40]


def give_both_ranks_the_same_columns(ranks: list[dict[str, torch.Tensor]]) -> None:
    ranks[1][f"{LAYER}attention.dense.weight"] = ranks[0][f"{LAYER}attention.dense.weight"]


def swap_the_halves_of_the_head(ranks: list[dict[str, torch.Tensor]]) -> None:
    ranks[0]["lm_head.weight"], ranks[1]["lm_head.weight"] = ranks[1]["lm_head.weight"], ranks[0]["lm_head.weight"]


def shift_one_bias(ranks: list[dict[str, torch.Tensor]]) -> None:
    name = f"{LAYER}attention.qkv.bias"
    ranks[1][name] = ranks[1][name].roll(1)


def lose_a_row_of_the_embedding(ranks: list[dict[str, torch.Tensor]]) -> None:
    ranks[1]["transformer.vocab_embedding.weight"] = ranks[1]["transformer.vocab_embedding.weight"].roll(1, dims=0)


def poison_a_weight(ranks: list[dict[str, torch.Tensor]]) -> None:
    ranks[1][f"{LAYER}mlp.proj.weight"][3, 3] = float("nan")


@pytest.mark.parametrize(
    "damage",
    [
        swap_fc_and_gate,
        drop_a_kv_head,
        give_both_ranks_the_same_columns,
        swap_the_halves_of_the_head,
        shift_one_bias,
        lose_a_row_of_the_embedding,
        poison_a_weight,
    ],
)
def test_a_wrong_rank_fails_the_gate(
    sources: dict[int, Checkpoint], prompts: list[Prompt], converted: Path, damage: Damage
) -> None:
    files = [converted / f"rank{index}.safetensors" for index in range(2)]
    ranks = [load_file(file) for file in files]
    damage(ranks)
    for file, rank in zip(files, ranks, strict=True):
        save_file({name: tensor.clone() for name, tensor in rank.items()}, file)
    assert not passes(precision_distance(sources[4], converted, prompts=prompts, timeout=120))


def test_a_rank_that_cannot_start_ends_the_run_at_once_and_is_named(prompts: list[Prompt], converted: Path) -> None:
    tensors = load_file(converted / "rank1.safetensors")
    del tensors["transformer.ln_f.weight"]
    save_file(tensors, converted / "rank1.safetensors")
    started, before = time.monotonic(), descendants()
    with pytest.raises(FaultError, match=r"rank 1: CheckpointError: .*lacks a tensor.*transformer\.ln_f\.weight"):
        run_sharded(converted, prompts, timeout=120)
    assert time.monotonic() - started < 60
    assert descendants() <= before


def test_ranks_that_take_too_long_are_ended(prompts: list[Prompt], converted: Path) -> None:
    before = descendants()
    with pytest.raises(FaultError, match="no answer within 0"):
        run_sharded(converted, prompts, timeout=0.0)
    assert descendants() <= before


def test_a_hung_watcher_is_ended_with_its_ranks(
    prompts: list[Prompt], converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    wait = subprocess.Popen.wait

    def stopped(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        if not started:
            started.append(process)
            os.kill(process.pid, signal.SIGSTOP)
        return wait(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", stopped)
    monkeypatch.setattr("nvlm_trt.verify.sharded.GRACE_SECONDS", 0.2)
    with pytest.raises(FaultError, match=r"no answer within 0\.1 s"):
        run_sharded(converted, prompts, timeout=0.1)
    assert not psutil.pid_exists(started[0].pid)


def test_the_ranks_end_when_whoever_started_them_is_gone(
    prompts: list[Prompt], converted: Path, tmp_path: Path
) -> None:
    Job(str(converted), len(prompts), 100.0).write(tmp_path)
    os.mkfifo(tmp_path / "prompts.safetensors")  # whoever reads it waits for ever
    command = [sys.executable, "-m", "nvlm_trt.verify.sharded_worker", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as watcher:
        assert watcher.stdin is not None
        ranks = wait_for_children(watcher.pid, 2)
        watcher.stdin.close()
        assert watcher.wait(60) == 1
    assert not [rank for rank in ranks if psutil.pid_exists(rank.pid)]


def descendants() -> set[psutil.Process]:
    """Processes below this one; other tests may have a server running."""
    return set(psutil.Process().children(recursive=True))


def wait_for_children(pid: int, count: int) -> list[psutil.Process]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        children = psutil.Process(pid).children(recursive=True)
        if len(children) == count:
            return children
        time.sleep(0.05)
    raise AssertionError("the ranks did not start")


class Alone:
    """The collectives of a single rank."""

    def all_reduce(self, partial: torch.Tensor) -> torch.Tensor:
        return partial

    def all_gather(self, part: torch.Tensor) -> torch.Tensor:
        return part

    def receive(self, shape: tuple[int, ...]) -> torch.Tensor:
        raise AssertionError(f"nobody sends {shape}")

    def send(self, hidden: torch.Tensor) -> None:
        raise AssertionError(f"nobody receives {tuple(hidden.shape)}")


def test_a_single_rank_is_the_reference(sources: dict[int, Checkpoint], prompts: list[Prompt], tmp_path: Path) -> None:
    convert_decoder(sources[2], tmp_path, tp=1, pp=1, precision=FP32)
    rank = RankDecoder(tmp_path, 0, Alone())
    ids, table = prompts[1]
    logits = rank.logits(torch.as_tensor(np.asarray(ids, dtype=np.int64)), torch.as_tensor(table))
    assert logits is not None
    torch.testing.assert_close(logits.float(), DecoderReference(sources[2]).logits(ids, table), rtol=1e-4, atol=1e-4)


def test_a_rank_checks_the_shapes_that_it_computes_with(converted: Path) -> None:
    tensors = load_file(converted / "rank0.safetensors")
    tensors["transformer.vocab_embedding.weight"] = tensors["transformer.vocab_embedding.weight"][:-1].clone()
    save_file(tensors, converted / "rank0.safetensors")
    rank = RankDecoder(converted, 0, Alone())
    with pytest.raises(CheckpointError, match=r"vocab_embedding.weight has another shape; seen: \[202, 64\]"):
        rank.logits(torch.tensor([1]), None)


def test_a_rank_without_a_readable_file_says_so(converted: Path) -> None:
    (converted / "rank1.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match=r"seen: .*rank1\.safetensors"):
        RankDecoder(converted, 1, Alone())


def test_run_rank_leaves_the_logits_of_every_prompt(
    sources: dict[int, Checkpoint], prompts: list[Prompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "restored after the test")
    convert_decoder(sources[2], tmp_path / "converted", tp=1, pp=1, precision=FP32)
    ids, _ = prompts[0]
    save_file({"ids.0": torch.as_tensor(np.asarray(ids, dtype=np.int64))}, tmp_path / "prompts.safetensors")
    Job(str(tmp_path / "converted"), 1, 60.0).write(tmp_path)
    run_rank(tmp_path, 0)
    logits = load_file(tmp_path / "logits.safetensors")["logits.0"]
    torch.testing.assert_close(logits, DecoderReference(sources[2]).logits(ids, None), rtol=1e-4, atol=1e-4)


def test_a_report_is_as_good_as_its_worst_prompt() -> None:
    good, bad = PromptAgreement(3, 1e-7, 1.0, 1e-8, 1e-9), PromptAgreement(5, 0.02, 0.8, 0.1, 0.2)
    report = ShardedReport(2, 1, (good, bad))
    assert (report.max_rel_error, report.argmax_agreement, passes(report)) == (0.02, 0.8, False)
    assert passes(ShardedReport(2, 1, (good,)))


def test_no_prompts_prove_nothing_and_no_checkpoint_is_an_error(
    sources: dict[int, Checkpoint], prompts: list[Prompt], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        precision_distance(sources[4], tmp_path, prompts=[])
    with pytest.raises(CheckpointError, match="no TensorRT-LLM checkpoint"):
        precision_distance(sources[4], tmp_path, prompts=prompts)

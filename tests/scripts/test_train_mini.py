"""The training script: its batched model is the released one, a stopped run ends as an undisturbed one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from nvlm_trt.errors import UserError
from nvlm_trt.miniature.conversations import Conversation, tokenise
from nvlm_trt.miniature.scenes import arithmetic, objects
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.mini_tokenizer import write_tokenizer
from nvlm_trt.model.reference.decoder import DecoderReference
from nvlm_trt.model.reference.vision import VisionReference, normalise
from nvlm_trt.model.tensors import decoder_tensors, projector_tensors, vision_tensors
from nvlm_trt.model.tokenizer import NvlmTokenizer


@pytest.fixture(scope="module")
def train_mini(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("train_mini")


@pytest.fixture(scope="module")
def weights(train_mini: ModuleType) -> dict[str, torch.Tensor]:
    """Random weights, biases and norms too, that bfloat16 holds exactly: exporting rounds nothing."""
    config = train_mini.CONFIG
    drawn = train_mini.initial(vision_tensors(config, 0) | projector_tensors(config) | decoder_tensors(config), 3)
    generator = torch.Generator().manual_seed(4)
    return {
        name: (value + 0.1 * torch.randn(value.shape, generator=generator)).bfloat16().float()
        for name, value in drawn.items()
    }


@pytest.fixture(scope="module")
def exported(train_mini: ModuleType, weights: dict[str, torch.Tensor], tmp_path_factory) -> Checkpoint:
    out = tmp_path_factory.mktemp("exported") / "mini"
    train_mini.export(out, weights, train_mini.learn_merges(train_mini.MAX_MERGES))
    return Checkpoint.open(out)


def test_the_exported_checkpoint_has_the_layout_of_the_release(train_mini: ModuleType, exported: Checkpoint) -> None:
    assert exported.config == train_mini.CONFIG
    assert exported.dummy_heads == train_mini.DUMMY_HEADS
    assert {info.dtype for info in exported.tensors.values()} == {"F32", "BF16"}
    assert len({info.file for info in exported.tensors.values()}) > 1
    files = next(iter(exported.tensors.values())).file.parent.iterdir()
    assert sum(file.stat().st_size for file in files) < 40_000_000


def test_a_finished_miniature_is_taken_up_as_it_was_exported(
    train_mini: ModuleType, weights: dict[str, torch.Tensor], exported: Checkpoint
) -> None:
    taken = train_mini.finished(exported.path)
    assert taken.keys() == weights.keys()
    assert all(torch.equal(taken[name], weights[name]) for name in weights)


def test_what_is_trained_computes_what_the_reference_computes(
    train_mini: ModuleType, weights: dict[str, torch.Tensor], exported: Checkpoint
) -> None:
    tiles = np.random.default_rng(0).integers(0, 255, (3, 112, 112, 3), dtype=np.uint8)
    rows = VisionReference(exported)(tiles)
    mine = train_mini.project(weights, train_mini.encode(weights, normalise(tiles)))
    assert torch.allclose(mine, rows, atol=1e-4)
    table = rows.reshape(-1, rows.shape[-1])
    ids = np.r_[5:20, 640 : 640 + len(table), 7:30]
    reference = DecoderReference(exported)
    hidden = train_mini.decode(weights, reference.embed(ids, table)[None])[0]
    logits = hidden @ weights["language_model.lm_head.weight"].T
    assert torch.allclose(logits, reference.logits(ids, table), atol=1e-4)


@pytest.fixture
def batch(train_mini: ModuleType, tmp_path: Path) -> list[Conversation]:
    write_tokenizer(tmp_path, train_mini.learn_merges(train_mini.MAX_MERGES))
    tokenizer = NvlmTokenizer.load(tmp_path)
    examples = [scene(np.random.default_rng(2), "train", 112) for scene in (arithmetic, objects)]
    return [tokenise(example, tokenizer, train_mini.CONFIG) for example in examples]


def test_padding_on_the_right_changes_no_loss(
    train_mini: ModuleType, weights: dict[str, torch.Tensor], batch: list[Conversation]
) -> None:
    used = {name: value.bfloat16() for name, value in weights.items()}
    together, _ = train_mini.answer_loss(used, batch)
    apart = [train_mini.answer_loss(used, [each])[0] * each.answers.sum() for each in batch]
    assert float(together) == pytest.approx(float(sum(apart)) / sum(each.answers.sum() for each in batch), rel=0.01)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_computes_the_loss_of_the_cpu(
    train_mini: ModuleType, weights: dict[str, torch.Tensor], batch: list[Conversation]
) -> None:
    used = {name: value.bfloat16() for name, value in weights.items()}
    here, _ = train_mini.answer_loss(used, batch)
    there, _ = train_mini.answer_loss({name: value.cuda() for name, value in used.items()}, batch)
    assert float(there) == pytest.approx(float(here), rel=0.02)


def test_a_stopped_run_ends_with_the_weights_of_an_undisturbed_one(
    train_mini: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_mini, "SAVE_EVERY", 2)
    monkeypatch.setattr(train_mini, "LOG_EVERY", 2)
    first = {"a.layers.0.w": torch.ones(4, 3), "b": torch.ones(3), "c": torch.ones(3)}
    phase = train_mini.Phase("toy", 8, 0.01, 0.2, 1, 1, ())

    def data(start: int, stop: int = 99) -> Iterator[int]:
        for step in range(start, 99):
            if step == stop:
                raise KeyboardInterrupt
            yield step

    def loss(used, step):
        return (used["a.layers.0.w"] @ (used["b"] * used["c"]) - step).square().sum().float(), {}

    def run(work: Path, stop: int = 99) -> dict[str, torch.Tensor]:
        work.mkdir(exist_ok=True)
        return train_mini.train(
            work, phase, first, ["a.layers.0.w", "b"], loss, lambda start: data(start, stop), torch.device("cpu")
        )

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", stop=5)
    resumed = run(tmp_path / "stopped")
    assert all(torch.equal(whole[name], resumed[name]) for name in first)
    assert torch.equal(resumed["c"], first["c"])
    assert not torch.equal(resumed["b"], first["b"])


def test_the_state_of_another_training_is_refused_and_kept(train_mini: ModuleType, tmp_path: Path) -> None:
    first = {"a.layers.0.w": torch.ones(2, 2), "b": torch.ones(2)}

    def run(steps: int) -> None:
        phase = train_mini.Phase("toy", steps, 0.01, 0.2, 1, 1, ())
        train_mini.train(
            tmp_path,
            phase,
            first,
            list(first),
            lambda used, _: ((used["a.layers.0.w"] @ used["b"]).sum().float(), {}),
            lambda start: iter(range(start, 99)),
            torch.device("cpu"),
        )

    run(2)
    kept = (tmp_path / "toy.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"another training; seen: 2 steps.*expected: 3 steps"):
        run(3)
    assert (tmp_path / "toy.safetensors").read_bytes() == kept


@pytest.mark.parametrize("change", ["weights", "what learns", "scenes"])
def test_a_state_of_other_weights_parts_or_scenes_is_refused(
    train_mini: ModuleType, tmp_path: Path, change: str
) -> None:
    def run(start: float, scenes: tuple[object, ...], *learns: str) -> None:
        train_mini.train(
            tmp_path,
            train_mini.Phase("toy", 2, 0.01, 0.2, 1, 1, learns, scenes),
            {"b": torch.full((2,), start)},
            ["b"],
            lambda used, _: (used["b"].sum().float(), {}),
            lambda first: iter(range(first, 99)),
            torch.device("cpu"),
        )

    whole, narrow = ((arithmetic, 0.5), (objects, 0.5)), ((arithmetic, 0.5), (partial(objects, grids=()), 0.5))
    run(1.0, whole, "decoder")
    run(1.0, whole, "decoder")
    others = {"weights": (2.0, whole, "decoder"), "what learns": (1.0, whole, "projector")}
    with pytest.raises(UserError, match="is the state of another training"):
        run(*others.get(change, (1.0, narrow, "decoder")))


def test_curves_are_drawn_before_the_checkpoint_appears(
    train_mini: ModuleType, exported: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed in between can be started again."""

    def killed(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_mini, "train", lambda _work, _phase, weights, *_: weights)
    monkeypatch.setattr(train_mini, "held_out", lambda *_: ())
    monkeypatch.setattr(train_mini, "plot", killed)
    words = ["--work", str(tmp_path), "--further", str(exported.path), "--encoder-stays"]
    monkeypatch.setattr(sys, "argv", ["train_mini.py", *words])
    with pytest.raises(KeyboardInterrupt):
        train_mini.main()
    assert not (tmp_path / "nvlm-d-mini").exists()
    monkeypatch.setattr(train_mini, "plot", lambda *_: None)
    train_mini.main()
    assert (tmp_path / "nvlm-d-mini").is_dir()


def test_validation_shows_nothing_of_the_batches_that_are_learned_from(
    train_mini: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = []

    def batches(seed: int, *_rest: object, **_more: object) -> Iterator[list[Conversation]]:
        seeds.append(seed)
        return iter(())

    monkeypatch.setattr(train_mini, "batches", batches)
    for phase in (*train_mini.PHASES, *train_mini.FURTHER):
        train_mini.held_out(phase, None)
    assert not {*seeds} & {phase.seed + 100 * more for phase in train_mini.FURTHER for more in range(90)}
    assert not {*seeds} & {phase.seed for phase in train_mini.PHASES}


def test_labels_are_asked_in_the_order_of_the_tokens(train_mini: ModuleType) -> None:
    patches = torch.arange(64).reshape(1, 8, 8)
    tokens = train_mini._as_tokens(patches)
    assert tokens.shape == (1, 16, 4)
    assert tokens[0, 1].tolist() == [2, 3, 10, 11]  # the second token: two patches of the first row, two below

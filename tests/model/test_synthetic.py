"""Synthetic checkpoints have the release's layout, equal bytes for equal seeds, and appear whole or not at all."""

from __future__ import annotations

import math
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nvlm_trt.errors import DoesNotFitError, UserError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.safetensors_stream import SafetensorsStream, TensorSpec
from nvlm_trt.model.synthetic import like_72b, small_spec, tiny_spec, write_synthetic
from nvlm_trt.model.tensors import expected_tensors


def files(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_equal_seeds_give_equal_bytes_and_other_seeds_others(tmp_path: Path) -> None:
    spec = tiny_spec(tile_size=56)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_synthetic(tmp_path / name, spec, seed=seed)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a") != files(tmp_path / "c")


def test_the_tiny_checkpoint_has_the_releases_tiles_and_tokens(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "tiny", tiny_spec())
    checkpoint = Checkpoint.open(tmp_path / "tiny")
    assert checkpoint.config == tiny_spec().config
    assert checkpoint.config.tokens_per_tile == 256
    assert checkpoint.dummy_heads == 3


def test_the_like_72b_spec_has_the_releases_widths() -> None:
    shapes = expected_tensors(like_72b(2).config, like_72b(2).dummy_heads)
    assert shapes["vision_model.encoder.layers.1.attn.qkv.weight"] == (12288, 3200)
    assert shapes["mlp1.1.weight"] == (29568, 12800)
    assert shapes["language_model.model.layers.1.self_attn.k_proj.weight"] == (1024, 8192)
    assert shapes["language_model.lm_head.weight"] == (152064, 8192)
    with pytest.raises(UserError, match="1 to 45"):
        like_72b(46)


def test_the_small_spec_has_the_shapes_of_internvit_300m_and_qwen2_0_5b() -> None:
    spec = small_spec()
    shapes = expected_tensors(spec.config, spec.dummy_heads)
    assert shapes["vision_model.encoder.layers.23.mlp.fc1.weight"] == (4096, 1024)
    assert shapes["language_model.model.layers.23.self_attn.k_proj.weight"] == (128, 896)
    assert shapes["language_model.lm_head.weight"] == (151936, 896)
    assert 0.9e9 < sum(math.prod(shape) for shape in shapes.values()) < 1.0e9


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_synthetic(tmp_path / "c", tiny_spec(tile_size=56), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == Checkpoint.open(tmp_path / "c").nbytes
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    with pytest.raises(UserError, match="something at the output"):
        write_synthetic(tmp_path / "c", tiny_spec(tile_size=56))


@pytest.mark.parametrize(("place", "reason"), [("file/sub", "File exists"), ("/proc/foo/made", "No such file")])
def test_a_place_that_cannot_be_written_is_told(place: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"the checkpoint cannot be written \({reason}.*\); seen: .*{place}"):
        write_synthetic(tmp_path / place, tiny_spec())


def test_a_full_disk_is_noticed_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 10))
    with pytest.raises(DoesNotFitError, match="10 bytes free"):
        write_synthetic(tmp_path / "c", tiny_spec(tile_size=56))
    assert not list(tmp_path.iterdir())


def test_a_failure_half_way_leaves_nothing(tmp_path: Path) -> None:
    def fail(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tmp_path / "c", tiny_spec(tile_size=56), progress=fail)
    assert not list(tmp_path.iterdir())


SPECS = [TensorSpec("wide", "F32", (3, 2)), TensorSpec("half", "BF16", (4,)), TensorSpec("byte", "I8", (2, 2))]


def test_a_streamed_file_is_read_back_by_the_library(tmp_path: Path) -> None:
    tensors = {
        "wide": torch.arange(6.0).view(3, 2),
        "half": torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.bfloat16),
        "byte": torch.tensor([[1, -2], [3, -128]], dtype=torch.int8),
    }
    with SafetensorsStream(tmp_path / "f.safetensors", SPECS) as stream:
        stream.write_part("wide", tensors["wide"][:1])
        stream.write_part("wide", tensors["wide"][1:])
        stream.write("half", tensors["half"])
        stream.write("byte", tensors["byte"].t().contiguous().t())
    loaded = load_file(tmp_path / "f.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("half", torch.zeros(4, dtype=torch.bfloat16), "expected wide next"),
        ("wide", torch.zeros(3, 2, dtype=torch.bfloat16), "dtype"),
        ("wide", torch.zeros(2, 3), "shape"),
    ],
)
def test_a_stream_takes_only_the_next_tensor_as_announced(
    tmp_path: Path, name: str, tensor: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message), SafetensorsStream(tmp_path / "f", SPECS) as stream:
        stream.write(name, tensor)


def test_a_stream_refuses_too_many_values_and_an_early_end(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="more than 24 bytes"), SafetensorsStream(tmp_path / "f", SPECS) as stream:
        stream.write_part("wide", torch.zeros(7))
    with pytest.raises(ValueError, match="half is not written"), SafetensorsStream(tmp_path / "f", SPECS) as stream:
        stream.write("wide", torch.zeros(3, 2))
    with SafetensorsStream(tmp_path / "f", SPECS[:1]) as stream:
        stream.write("wide", torch.zeros(3, 2))
        with pytest.raises(ValueError, match="every tensor is written"):
            stream.write("wide", torch.zeros(3, 2))

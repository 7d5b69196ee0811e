"""A checkpoint is opened by its headers, checked in both directions, and read one tensor at a time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nvlm_trt.errors import CheckpointError
from nvlm_trt.model.checkpoint import INDEX_NAME, SINGLE_NAME, Checkpoint
from nvlm_trt.model.config import load_config
from nvlm_trt.model.synthetic import tiny_spec, write_synthetic
from nvlm_trt.model.tensors import expected_tensors

QKV = "vision_model.encoder.layers.1.attn.qkv.weight"


@pytest.fixture
def single(tmp_path: Path) -> Path:
    out = tmp_path / "single"
    write_synthetic(out, tiny_spec(tile_size=56, vision_layers=2, decoder_layers=2, max_shard_bytes=None))
    return out


def rewrite(directory: Path, change: dict[str, torch.Tensor | None]) -> None:
    tensors = load_file(directory / SINGLE_NAME)
    for name, tensor in change.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, directory / SINGLE_NAME)


def test_the_released_index_holds_exactly_the_expected_names(nvlm_72b: Path) -> None:
    weight_map = json.loads((nvlm_72b / INDEX_NAME).read_text())["weight_map"]
    shapes = expected_tensors(load_config(nvlm_72b), dummy_heads=7)
    assert shapes.keys() == weight_map.keys()
    assert len(shapes) == 1556
    values = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert values == 79_379_593_344


def test_sharded_and_single_file_checkpoints_hold_the_same(tmp_path: Path) -> None:
    for name, shard in (("sharded", 100_000), ("single", None)):
        write_synthetic(tmp_path / name, tiny_spec(tile_size=56, max_shard_bytes=shard))
    sharded, single = Checkpoint.open(tmp_path / "sharded"), Checkpoint.open(tmp_path / "single")
    assert len({info.file for info in sharded.tensors.values()}) > 3
    assert sharded.tensors.keys() == single.tensors.keys()
    assert all(torch.equal(sharded.read(name), single.read(name)) for name in single.tensors)


def test_a_layer_may_straddle_shards(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    files = {}
    for name, info in checkpoint.tensors.items():
        files.setdefault(name.rsplit(".layers.", 1)[-1].split(".")[0], set()).add(info.file)
    assert any(len(where) > 1 for where in files.values())


def test_dtypes_are_mixed_as_in_the_release_and_cast_on_reading(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    assert checkpoint.tensors[QKV].dtype == "F32"
    assert checkpoint.tensors["mlp1.1.weight"].dtype == "BF16"
    whole = checkpoint.read(QKV)
    assert whole.dtype == torch.float32
    assert torch.equal(checkpoint.read(QKV, torch.bfloat16), whole.to(torch.bfloat16))
    assert torch.equal(checkpoint.read_rows(QKV, 3, 9), whole[3:9])


@pytest.mark.parametrize("dummy_heads", [0, 1, 7])
def test_dummy_heads_are_found_from_the_shapes(tmp_path: Path, dummy_heads: int) -> None:
    write_synthetic(tmp_path / "c", tiny_spec(tile_size=56, dummy_heads=dummy_heads))
    checkpoint = Checkpoint.open(tmp_path / "c")
    assert checkpoint.dummy_heads == dummy_heads
    checkpoint.check_dummy_heads()


@pytest.mark.parametrize("part", ["q", "k", "v", "proj"])
def test_a_dummy_head_that_is_not_zero_is_refused_by_name(single: Path, part: str) -> None:
    checkpoint = Checkpoint.open(single)
    name = QKV.replace("qkv", "proj") if part == "proj" else QKV
    tensor = checkpoint.read(name).clone()
    if part == "proj":
        tensor[0, -1] = 1e-20
    else:
        rows = tensor.shape[0] // 3
        tensor["qkv".index(part) * rows + rows - 1, 0] = 1e-20
    rewrite(single, {name: tensor})
    with pytest.raises(CheckpointError, match=r"layers\.1\.attn.*dummy"):
        Checkpoint.open(single).check_dummy_heads()


def test_every_fault_is_listed_at_once(single: Path) -> None:
    rewrite(
        single,
        {
            "mlp1.3.weight": None,
            "language_model.model.norm.weight": torch.zeros(5),
            "mlp1.0.bias": torch.zeros(320, dtype=torch.int8),
            "language_model.model.layers.0.self_attn.o_proj.bias": torch.zeros(128),
        },
    )
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(single)
    message = str(caught.value)
    assert "4 faults" in message
    assert "missing: mlp1.3.weight" in message
    assert "unexpected: language_model.model.layers.0.self_attn.o_proj.bias" in message
    assert "shape: language_model.model.norm.weight seen [5], expected [128]" in message
    assert "dtype: mlp1.0.bias seen I8" in message


def test_a_long_list_of_faults_is_cut(single: Path) -> None:
    names = [name for name in Checkpoint.open(single).tensors if "decoder" in name or "layers" in name]
    rewrite(single, dict.fromkeys(names))
    with pytest.raises(CheckpointError, match=r"and \d+ more"):
        Checkpoint.open(single)


def test_missing_and_truncated_shards_and_a_lying_index_are_listed_together(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    first, second, third, *_ = sorted(copy.glob("model-*.safetensors"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-100])
    index = json.loads((copy / INDEX_NAME).read_text())
    index["weight_map"]["invented"] = third.name
    moved = next(name for name, file in index["weight_map"].items() if file == third.name)
    del index["weight_map"][moved]
    (copy / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(copy)
    message = str(caught.value)
    assert f"a shard is missing; seen: {first.name}" in message
    assert "cannot be read" in message
    assert "names invented" in message
    assert f"{moved} is not in the index" in message


def test_an_index_that_points_outside_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    (copy / INDEX_NAME).write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside"):
        Checkpoint.open(copy)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_a_damaged_index_is_one_clear_error(tiny_checkpoint: Path, tmp_path: Path, content: str) -> None:
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    (copy / INDEX_NAME).write_text(content)
    with pytest.raises(CheckpointError, match="index"):
        Checkpoint.open(copy)


def test_weights_of_other_formats_are_not_read(single: Path) -> None:
    (single / SINGLE_NAME).rename(single / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="they can run code"):
        Checkpoint.open(single)


def test_asking_for_an_unknown_tensor_is_an_error(tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="no such tensor"):
        Checkpoint.open(tiny_checkpoint).read("nothing")

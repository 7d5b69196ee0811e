"""Reading a TensorRT-LLM checkpoint back: checked whole, joined exactly."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nvlm_trt.decoder.convert import convert_decoder
from nvlm_trt.decoder.trtllm_checkpoint import TrtllmCheckpoint
from nvlm_trt.errors import CheckpointError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.synthetic import tiny_spec, write_synthetic

PARALLELISM = [(1, 1), (2, 1), (4, 1), (8, 1), (2, 2)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Five layers, 2 kv heads, an odd vocabulary."""
    directory = tmp_path_factory.mktemp("trtllm") / "source"
    spec = tiny_spec(
        tile_size=28,
        vision_heads=1,
        vision_layers=1,
        dummy_heads=0,
        hidden_size=32,
        intermediate_size=48,
        decoder_layers=5,
        heads=8,
        kv_heads=2,
        vocab_size=101,
    )
    write_synthetic(directory, spec)
    return Checkpoint.open(directory)


@pytest.fixture(scope="module")
def converted(source: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Path]:
    root = tmp_path_factory.mktemp("converted")
    directories = {(tp, pp): root / f"tp{tp}pp{pp}" for tp, pp in PARALLELISM}
    for (tp, pp), directory in directories.items():
        convert_decoder(source, directory, tp=tp, pp=pp)
    return directories


@pytest.fixture
def copy(converted: dict[tuple[int, int], Path], tmp_path: Path) -> Path:
    """A tp 2 checkpoint that a test may damage."""
    return Path(shutil.copytree(converted[2, 1], tmp_path / "checkpoint"))


@pytest.mark.parametrize("parallelism", PARALLELISM)
def test_the_joined_tensors_are_the_source_rounded(
    source: Checkpoint, converted: dict[tuple[int, int], Path], parallelism: tuple[int, int]
) -> None:
    checkpoint = TrtllmCheckpoint.open(converted[parallelism])

    def rounded(name: str) -> torch.Tensor:
        return source.read(f"language_model.{name}", torch.bfloat16)

    assert (checkpoint.tp, checkpoint.pp, checkpoint.dtype) == (*parallelism, torch.bfloat16)
    assert checkpoint.decoder == source.config.decoder
    assert checkpoint.embedding().equal(rounded("model.embed_tokens.weight"))
    assert checkpoint.lm_head().equal(rounded("lm_head.weight"))
    assert checkpoint.final_norm().equal(rounded("model.norm.weight"))
    for index in range(5):
        layer, prefix = checkpoint.layer(index), f"model.layers.{index}."
        assert layer.input_norm.equal(rounded(f"{prefix}input_layernorm.weight"))
        assert layer.q_weight.equal(rounded(f"{prefix}self_attn.q_proj.weight"))
        assert layer.q_bias.equal(rounded(f"{prefix}self_attn.q_proj.bias"))
        assert layer.k_weight.equal(rounded(f"{prefix}self_attn.k_proj.weight"))
        assert layer.k_bias.equal(rounded(f"{prefix}self_attn.k_proj.bias"))
        assert layer.v_weight.equal(rounded(f"{prefix}self_attn.v_proj.weight"))
        assert layer.v_bias.equal(rounded(f"{prefix}self_attn.v_proj.bias"))
        assert layer.o_weight.equal(rounded(f"{prefix}self_attn.o_proj.weight"))
        assert layer.post_norm.equal(rounded(f"{prefix}post_attention_layernorm.weight"))
        assert layer.gate_weight.equal(rounded(f"{prefix}mlp.gate_proj.weight"))
        assert layer.up_weight.equal(rounded(f"{prefix}mlp.up_proj.weight"))
        assert layer.down_weight.equal(rounded(f"{prefix}mlp.down_proj.weight"))


@pytest.mark.parametrize("index", [-1, 5])
def test_a_layer_that_does_not_exist_is_an_index_error(converted: dict[tuple[int, int], Path], index: int) -> None:
    checkpoint = TrtllmCheckpoint.open(converted[2, 2])
    with pytest.raises(IndexError, match=f"layer {index} of 5"):
        checkpoint.layer(index)


def test_every_fault_of_every_rank_is_listed_at_once(copy: Path) -> None:
    first, second = copy / "rank0.safetensors", copy / "rank1.safetensors"
    tensors = load_file(first)
    del tensors["transformer.layers.2.mlp.fc.weight"]
    tensors["lm_head.bias"] = torch.zeros(51)
    tensors["transformer.layers.1.attention.qkv.bias"] = tensors["transformer.layers.1.attention.qkv.bias"].float()
    save_file(tensors, first)
    tensors = load_file(second)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:50].contiguous()
    save_file(tensors, second)
    shutil.copy(second, copy / "rank2.safetensors")
    with pytest.raises(CheckpointError) as refusal:
        TrtllmCheckpoint.open(copy)
    text = str(refusal.value)
    assert "5 faults" in text
    assert "rank0.safetensors: missing transformer.layers.2.mlp.fc.weight [24, 32]" in text
    assert "rank0.safetensors: unexpected lm_head.bias [51]" in text
    assert "rank0.safetensors: dtype of transformer.layers.1.attention.qkv.bias is F32, expected BF16" in text
    assert "rank1.safetensors: shape of lm_head.weight is [50, 32], expected [51, 32]" in text
    assert "rank2.safetensors: there are only 2 ranks" in text


def test_a_long_list_of_faults_is_cut_and_counted(copy: Path) -> None:
    (copy / "rank1.safetensors").unlink()
    save_file({"stray": torch.zeros(1)}, copy / "rank0.safetensors")
    with pytest.raises(CheckpointError, match=r"45 faults(.|\n)*\.\.\. and 5 more"):
        TrtllmCheckpoint.open(copy)


def test_a_missing_and_a_truncated_rank_are_named(copy: Path) -> None:
    whole = (copy / "rank0.safetensors").read_bytes()
    (copy / "rank0.safetensors").write_bytes(whole[:-10])
    (copy / "rank1.safetensors").unlink()
    with pytest.raises(CheckpointError) as refusal:
        TrtllmCheckpoint.open(copy)
    assert "rank0.safetensors: a rank file cannot be read" in str(refusal.value)
    assert "rank1.safetensors: missing" in str(refusal.value)


def test_tables_that_tensorrt_llm_recomputes_may_be_there(copy: Path) -> None:
    tensors = load_file(copy / "rank0.safetensors")
    tensors["transformer.layers.0.attention.rotary_inv_freq"] = torch.zeros(2)
    tensors["transformer.layers.0.attention.embed_positions"] = torch.zeros(1, 4, 4)
    save_file(tensors, copy / "rank0.safetensors")
    assert TrtllmCheckpoint.open(copy).tp == 2


def test_a_config_that_no_rank_layout_fits_is_a_checkpoint_error(copy: Path) -> None:
    config = (copy / "config.json").read_text(encoding="utf-8")
    (copy / "config.json").write_text(config.replace('"intermediate_size": 48', '"intermediate_size": 49'))
    with pytest.raises(CheckpointError, match="intermediate size 49 is no multiple of tp 2"):
        TrtllmCheckpoint.open(copy)


def test_a_damaged_file_behind_an_opened_checkpoint_is_a_checkpoint_error(copy: Path) -> None:
    checkpoint = TrtllmCheckpoint.open(copy)
    (copy / "rank0.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.embedding()

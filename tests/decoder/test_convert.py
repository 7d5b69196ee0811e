"""Converting a decoder to a TensorRT-LLM checkpoint: the bits, the files, the memory."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from nvlm_trt.decoder import encode
from nvlm_trt.decoder.convert import convert_decoder, converted_bytes
from nvlm_trt.decoder.precision import FP32, STORED_DTYPES, Precision
from nvlm_trt.decoder.trtllm_checkpoint import TrtllmCheckpoint
from nvlm_trt.errors import CheckpointError, RecipeError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.synthetic import tiny_spec, write_synthetic

PARALLELISM = [(1, 1), (2, 1), (4, 1), (8, 1), (2, 2), (1, 5)]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def make_source(
    directory: Path,
    *,
    heads: int = 8,
    kv_heads: int = 4,
    layers: int = 5,
    vocab: int = 101,
    head_dim: int = 4,
    wide: int = 48,
) -> Checkpoint:
    spec = tiny_spec(
        tile_size=28,
        vision_heads=1,
        vision_layers=1,
        dummy_heads=0,
        hidden_size=heads * head_dim,
        intermediate_size=wide,
        decoder_layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        vocab_size=vocab,
        max_shard_bytes=20_000,
    )
    write_synthetic(directory, spec)
    return Checkpoint.open(directory)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Five layers, 4 kv heads, an odd vocabulary, layers that straddle shards."""
    return make_source(tmp_path_factory.mktemp("convert") / "source")


@pytest.fixture(scope="module")
def source_kv2(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The same with 2 kv heads."""
    return make_source(tmp_path_factory.mktemp("convert") / "source", kv_heads=2)


def official_rank(checkpoint: Checkpoint, tp: int, pp: int, index: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """One rank by whole-tensor operations, in the order in which the official loader applies them.

    Slices are ceil(width / tp) wide, what is short is padded with zeros at the end, kv heads are expanded before they
    are split, q, k and v are concatenated after, and the cast comes last.
    """
    decoder = checkpoint.config.decoder
    tp_rank, stage = index % tp, index // tp

    def part(tensor: torch.Tensor, dim: int) -> torch.Tensor:
        width = tensor.shape[dim]
        step = math.ceil(width / tp)
        start, stop = min(tp_rank * step, width), min((tp_rank + 1) * step, width)
        return tensor.narrow(dim, start, stop - start)

    def expanded(tensor: torch.Tensor) -> torch.Tensor:
        repeats = max(1, tp // decoder.num_kv_heads)
        return tensor.unflatten(0, (decoder.num_kv_heads, -1)).repeat_interleave(repeats, dim=0).flatten(0, 1)

    read = checkpoint.read
    rank: dict[str, torch.Tensor] = {}
    if stage == 0:
        rank["transformer.vocab_embedding.weight"] = read("language_model.model.embed_tokens.weight")
    layers = torch.tensor_split(torch.arange(decoder.num_layers), pp)[stage].tolist()
    for local, layer in enumerate(layers):
        old, new = f"language_model.model.layers.{layer}.", f"transformer.layers.{local}."
        rank[f"{new}input_layernorm.weight"] = read(f"{old}input_layernorm.weight")
        for kind in ("weight", "bias"):
            q, k, v = (read(f"{old}self_attn.{letter}_proj.{kind}") for letter in "qkv")
            rank[f"{new}attention.qkv.{kind}"] = torch.cat([part(q, 0), part(expanded(k), 0), part(expanded(v), 0)])
        rank[f"{new}attention.dense.weight"] = part(read(f"{old}self_attn.o_proj.weight"), 1)
        rank[f"{new}mlp.fc.weight"] = part(read(f"{old}mlp.gate_proj.weight"), 0)
        rank[f"{new}mlp.proj.weight"] = part(read(f"{old}mlp.down_proj.weight"), 1)
        rank[f"{new}mlp.gate.weight"] = part(read(f"{old}mlp.up_proj.weight"), 0)
        rank[f"{new}post_layernorm.weight"] = read(f"{old}post_attention_layernorm.weight")
    if stage == pp - 1:
        rank["transformer.ln_f.weight"] = read("language_model.model.norm.weight")
        head = part(read("language_model.lm_head.weight"), 0)
        missing = math.ceil(decoder.vocab_size / tp) - len(head)
        rank["lm_head.weight"] = torch.nn.functional.pad(head, (0, 0, 0, missing))
    return {name: tensor.to(dtype) for name, tensor in rank.items()}


def assert_same_bits(seen: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(seen) == list(expected) or sorted(seen) == sorted(expected)
    for name, tensor in expected.items():
        assert seen[name].dtype == tensor.dtype, name
        assert seen[name].shape == tensor.shape, name
        assert seen[name].contiguous().view(-1).view(torch.uint8).equal(tensor.contiguous().view(-1).view(torch.uint8))


def assert_official(checkpoint: Checkpoint, directory: Path, tp: int, pp: int, dtype: str) -> None:
    for index in range(tp * pp):
        expected = official_rank(checkpoint, tp, pp, index, DTYPES[dtype])
        assert_same_bits(load_file(directory / f"rank{index}.safetensors"), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tp", "pp"), PARALLELISM)
@pytest.mark.parametrize("which", ["source", "source_kv2"])
def test_every_rank_has_the_bits_of_the_official_operations(
    request: pytest.FixtureRequest, tmp_path: Path, which: str, tp: int, pp: int, dtype: str
) -> None:
    checkpoint: Checkpoint = request.getfixturevalue(which)
    convert_decoder(checkpoint, tmp_path, tp=tp, pp=pp, precision=Precision(STORED_DTYPES[dtype]))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["config.json", *(f"rank{index}.safetensors" for index in range(tp * pp))]
    )
    assert_official(checkpoint, tmp_path, tp, pp, dtype)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[dict[str, int], int, int]:
    tp = draw(st.sampled_from([1, 2, 3, 4]))
    kv_heads = draw(st.sampled_from([count for count in range(1, 9) if count % tp == 0 or tp % count == 0]))
    heads = kv_heads * draw(st.integers(1, 2)) * (1 if kv_heads % tp == 0 else tp)
    layers = draw(st.integers(1, 4))
    wide, vocab = tp * draw(st.integers(1, 5)), draw(st.integers(1, 30))
    widths = {"heads": heads, "kv_heads": kv_heads, "layers": layers, "vocab": vocab, "wide": wide}
    return widths, tp, draw(st.integers(1, layers))


@settings(max_examples=20, deadline=None)
@given(shape=shapes(), dtype=st.sampled_from(sorted(DTYPES)))
def test_any_shape_that_is_allowed_converts_and_joins_exactly(
    shape: tuple[dict[str, int], int, int], dtype: str
) -> None:
    widths, tp, pp = shape
    with tempfile.TemporaryDirectory() as name:
        checkpoint = make_source(Path(name) / "source", **widths)
        out = Path(name) / "out"
        convert_decoder(checkpoint, out, tp=tp, pp=pp, precision=Precision(STORED_DTYPES[dtype]))
        assert_official(checkpoint, out, tp, pp, dtype)
        joined = TrtllmCheckpoint.open(out)
        for tensor in checkpoint.tensors:
            if tensor.startswith("language_model."):
                assert joined.joined(tensor).equal(checkpoint.read(tensor, DTYPES[dtype])), tensor


@pytest.mark.parametrize("elements", [1, 100, 333])
def test_the_size_of_blocks_changes_no_bit(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elements: int
) -> None:
    monkeypatch.setattr(encode, "BLOCK_ELEMENTS", elements)
    convert_decoder(source, tmp_path, tp=2, pp=2)
    assert_official(source, tmp_path, 2, 2, "bfloat16")


def test_equal_inputs_give_equal_bytes(source: Checkpoint, tmp_path: Path) -> None:
    for name in ("first", "second"):
        convert_decoder(source, tmp_path / name, tp=2, pp=1)
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()


Edit = Callable[[str, torch.Tensor], torch.Tensor]


def edited_copy(checkpoint: Checkpoint, directory: Path, edit: Edit) -> Checkpoint:
    """The checkpoint as a single file, some tensors changed."""
    directory.mkdir()
    (directory / "config.json").write_bytes((checkpoint.path / "config.json").read_bytes())
    tensors = {name: edit(name, checkpoint.read(name)).contiguous() for name in checkpoint.tensors}
    save_file(tensors, directory / "model.safetensors")
    return Checkpoint.open(directory)


def test_floats_are_rounded_to_nearest_even_as_torch_does(source: Checkpoint, tmp_path: Path) -> None:
    bits = torch.tensor(
        [0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0x7F7FFFFF, 0x00000001, 0x00400000], dtype=torch.int32
    )
    special = torch.cat([bits.view(torch.float32), torch.tensor([-0.0, float("inf"), float("-inf")])])
    name = "language_model.model.layers.0.self_attn.q_proj.bias"

    def edit(each: str, tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([special, tensor[len(special) :]]) if each == name else tensor

    checkpoint = edited_copy(source, tmp_path / "source", edit)
    convert_decoder(checkpoint, tmp_path / "out", tp=1, pp=1)
    seen = load_file(tmp_path / "out" / "rank0.safetensors")["transformer.layers.0.attention.qkv.bias"]
    expected = torch.tensor(
        [0x3F80, 0x3F82, 0x3F80, 0x3F81, 0x7F80, 0x0000, 0x0040, -0x8000, 0x7F80, -0x80], dtype=torch.int16
    )
    assert seen[: len(special)].view(torch.int16).tolist() == expected.tolist()


def test_a_value_beyond_float16_is_refused_not_made_infinite(source: Checkpoint, tmp_path: Path) -> None:
    name = "language_model.model.layers.3.mlp.down_proj.weight"
    checkpoint = edited_copy(source, tmp_path / "source", lambda each, old: old * 1e6 if each == name else old)
    with pytest.raises(CheckpointError, match=r"does not fit into float16.*layers\.3\.mlp\.down_proj"):
        convert_decoder(checkpoint, tmp_path / "out", tp=2, pp=1, precision=Precision(STORED_DTYPES["float16"]))
    assert not (tmp_path / "out" / "config.json").exists()


def test_progress_counts_every_byte_of_the_output(source: Checkpoint, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    convert_decoder(
        source, tmp_path, tp=4, pp=2, precision=FP32, progress=lambda done, total: seen.append((done, total))
    )
    stored = sum(tensor.nbytes for path in tmp_path.glob("rank*.safetensors") for tensor in load_file(path).values())
    assert {total for _, total in seen} == {stored}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == stored == converted_bytes(source.config, 4, 2, FP32)


def test_an_earlier_conversion_of_more_ranks_leaves_nothing_behind(source: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("kept", encoding="utf-8")
    convert_decoder(source, tmp_path, tp=4, pp=1)
    convert_decoder(source, tmp_path, tp=2, pp=1)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", "rank0.safetensors", "rank1.safetensors", "notes.txt"}


def test_an_interrupted_conversion_is_no_checkpoint(source: Checkpoint, tmp_path: Path) -> None:
    convert_decoder(source, tmp_path, tp=2, pp=1)

    def stop_halfway(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_decoder(source, tmp_path, tp=2, pp=1, progress=stop_halfway)
    with pytest.raises(CheckpointError, match=r"config\.json is written last"):
        TrtllmCheckpoint.open(tmp_path)


def test_nothing_is_touched_when_the_shapes_do_not_allow_it(source: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be split over tp 3 x pp 6"):
        convert_decoder(source, tmp_path / "out", tp=3, pp=6)
    assert not (tmp_path / "out").exists()


PEAK_MEMORY = """
import re, sys
from pathlib import Path
import nvlm_trt.decoder.encode  # with torch, which is not what is measured
from nvlm_trt.decoder.convert import convert_decoder
from nvlm_trt.model.checkpoint import Checkpoint

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

checkpoint = Checkpoint.open(Path(sys.argv[1]))
Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten: imports are not what is measured
before = peak()
convert_decoder(checkpoint, Path(sys.argv[2]), tp=2, pp=1)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_layers(tmp_path: Path) -> None:
    peaks = {}
    for layers in (2, 8):
        source, out = tmp_path / f"source{layers}", tmp_path / f"out{layers}"
        make_source(source, layers=layers, head_dim=64, wide=3072, vocab=2000)
        command = [sys.executable, "-c", PEAK_MEMORY, str(source), str(out)]
        peaks[layers] = int(subprocess.run(command, capture_output=True, check=True, timeout=120).stdout)
    layer_bytes = 2 * (out / "rank0.safetensors").stat().st_size / 8
    assert layer_bytes > 10 << 20, "layers are large enough for growth to show"
    assert 0 < peaks[8] < peaks[2] + layer_bytes, json.dumps(peaks)

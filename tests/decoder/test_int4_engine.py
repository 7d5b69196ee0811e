"""Engines with 4-bit weights, against a float64 decoder whose weights went through 4 bits by arithmetic of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from nvlm_trt.decoder.build_cpu import build_decoder_cpu, engine_bytes
from nvlm_trt.decoder.convert import convert_decoder
from nvlm_trt.decoder.engine_config import DecoderEngineConfig
from nvlm_trt.decoder.graph_constants import quantize_groups
from nvlm_trt.decoder.session_cpu import DecoderSession
from nvlm_trt.decoder.step import StepPart
from nvlm_trt.decoder.trtllm_checkpoint import TrtllmCheckpoint
from nvlm_trt.errors import RecipeError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.decoder import DecoderReference
from nvlm_trt.model.synthetic import tiny_spec, write_synthetic

BLOCKS = 8


def through_4_bits(weight: npt.NDArray[np.float32], group: int) -> npt.NDArray[np.float64]:
    """Value by value: codes are float32 ratios to a group's step, rounded; values are codes times the step."""
    result = np.empty(weight.shape, np.float64)
    for row, values in enumerate(weight):
        for start in range(0, len(values), group):
            part = values[start : start + group]
            step = part[np.argmax(np.abs(part))] / np.float32(-8)
            codes = np.clip(np.rint(part / step), -8, 7) if step else np.zeros_like(part)
            result[row, start : start + group] = codes.astype(np.float64) * float(step)
    return result


def through_8_bits(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    step = np.abs(weight).max(axis=1, keepdims=True) / np.float32(127)
    return np.rint(weight / step).astype(np.float64) * step.astype(np.float64)


class Dequantised(Checkpoint):
    """The source with the matrices of its layers through 4 bits, its output matrix through 8, its embedding in bf16.

    Groups are of 64 inputs; the MLP is 160 wide here, which only 32 divide.
    """

    def __init__(self, path: Path, wide_group: int = 32) -> None:
        source = Checkpoint.open(path)
        super().__init__(source.path, source.config, source.tensors)
        self._wide_group = wide_group

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        tensor = super().read(name)
        if name.endswith("embed_tokens.weight"):
            tensor = tensor.to(torch.bfloat16)
        elif name.endswith("lm_head.weight"):
            tensor = torch.from_numpy(through_8_bits(tensor.float().numpy()))
        elif name.endswith("proj.weight"):
            group = self._wide_group if name.endswith("down_proj.weight") else 64
            tensor = torch.from_numpy(through_4_bits(tensor.float().numpy(), group))
        return tensor if dtype is None else tensor.to(dtype)


@pytest.fixture(scope="module")
def session(compiled: Callable[..., Path]) -> DecoderSession:
    engine = compiled("int4_wo")
    return DecoderSession(engine, DecoderEngineConfig.read(engine), BLOCKS, threads=1)


def error(session: DecoderSession, reference: DecoderReference, prompt: tuple) -> float:
    """Of all logits after the prompt, the largest difference over the largest magnitude."""
    ids, table = prompt
    seen = session.run([StepPart(ids, 0, range(BLOCKS), table, wants_logits=True)])[0]
    expected = reference.logits(ids, table)[-1].numpy()
    return float(np.abs(seen - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("rows", [0, 16])
def test_logits_equal_those_of_the_dequantised_decoder(session, decoder_checkpoint, make_prompt, rows):
    reference = DecoderReference(Dequantised(decoder_checkpoint), torch.float64)
    assert error(session, reference, make_prompt(rows, 90, rows)) < 1e-5


def test_other_groups_in_one_of_five_matrices_are_noticed(session, decoder_checkpoint, make_prompt):
    reference = DecoderReference(Dequantised(decoder_checkpoint, wide_group=160), torch.float64)
    assert error(session, reference, make_prompt(0, 90)) > 1e-2


def test_matrices_of_layers_are_4_bits_wide_in_memory_and_nothing_widens_them(session, compiled):
    nodes = session._request.get_compiled_model().get_runtime_model().get_ordered_ops()
    kinds = [
        (each["layerType"].astype(str), each["primitiveType"].astype(str)) for each in (n.get_rt_info() for n in nodes)
    ]
    layers = DecoderEngineConfig.read(compiled("int4_wo")).num_layers
    products = 5 * layers  # qkv, output, gate, up, down
    assert kinds.count(("Const", "unknown_i4")) == products
    assert kinds.count(("Const", "unknown_i8")) == 1  # the output matrix
    assert [kind for kind, _ in kinds].count("FullyConnected") == products + 1


def test_the_size_is_known_beforehand(compiled, converted):
    decoder, config = TrtllmCheckpoint.open(converted(1, 1)).decoder, DecoderEngineConfig.read(compiled("int4_wo"))
    rope_tables = 2 * 4 * config.max_seq_len * config.head_dim
    total = engine_bytes(decoder, "int4_wo")
    assert total <= (compiled("int4_wo") / "model.bin").stat().st_size - rope_tables < 1.05 * total
    values, wide = 64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 160, 64 * 160
    ends = 3 * decoder.vocab_size * 64  # embedding and output matrix
    assert total == ends + 3 * (values // 2 + 4 * ((values - wide) // 64 + wide // 32))


def test_the_same_bytes_come_whatever_the_size_of_the_blocks_rounded(compiled, converted, tmp_path, monkeypatch):
    monkeypatch.setattr("nvlm_trt.decoder.graph_constants.BLOCK_VALUES", 700)
    config = DecoderEngineConfig.read(compiled("int4_wo"))
    limits = {name: getattr(config, name) for name in ("max_batch_size", "max_seq_len", "max_prompt_table_rows")}
    build_decoder_cpu(converted(1, 1), tmp_path, precision="int4_wo", **limits)
    for name in ("model.xml", "model.bin"):
        assert (tmp_path / name).read_bytes() == (compiled("int4_wo") / name).read_bytes()


def test_the_largest_of_a_group_is_kept_and_all_others_are_within_a_step():
    weight = torch.randn(6, 96, generator=torch.Generator().manual_seed(0))
    weight[2] = 0
    weight[3, :32] = torch.linspace(-1, 1, 32)
    codes, scale = quantize_groups(weight)
    assert (codes.shape, codes.dtype, scale.shape) == ((6, 3, 32), torch.int8, (6, 3, 1))
    groups, values = weight.reshape(6, 3, 32), codes * scale
    assert (codes.min(), codes.max()) == (-8, 7)
    assert torch.equal(codes.amin(dim=2), torch.where(groups.any(dim=2), -8, 0).to(torch.int8))
    off = (values - groups).abs()
    clipped = groups / scale > 7.5  # nearly as large as the largest, with the other sign
    assert bool((off <= scale.abs() * torch.where(clipped, 1.0, 0.5) + 1e-6).all())
    assert bool(clipped[3, 0, -1])
    largest = groups.abs() == groups.abs().amax(dim=2, keepdim=True)
    assert bool((off.amin(dim=2) < 1e-6).all())
    assert bool((off[largest & ~clipped] < 1e-6).all())


def test_widths_that_do_not_divide_into_groups_are_refused_before_anything_is_written(tmp_path):
    spec = tiny_spec(tile_size=56, hidden_size=72, intermediate_size=104, decoder_layers=1, heads=3, kv_heads=1)
    write_synthetic(tmp_path / "checkpoint", spec)
    convert_decoder(Checkpoint.open(tmp_path / "checkpoint"), tmp_path / "ranks", tp=1, pp=1)
    limits = {"max_batch_size": 1, "max_seq_len": 64, "max_prompt_table_rows": 0}
    with pytest.raises(RecipeError, match=r"\[72, 72, 104\]; expected: multiples of 16; take .* int8_wo"):
        build_decoder_cpu(tmp_path / "ranks", tmp_path / "engine", precision="int4_wo", **limits)
    assert not (tmp_path / "engine").exists()
    build_decoder_cpu(tmp_path / "ranks", tmp_path / "engine", precision="int8_wo", **limits)

"""Engines that round weights and inputs to 8 bits, against a float64 decoder with rounding of its own."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own short name
from openvino import opset15 as ops
from torch.overrides import TorchFunctionMode

from nvlm_trt.decoder.build_cpu import build_decoder_cpu
from nvlm_trt.decoder.convert import convert_decoder
from nvlm_trt.decoder.engine_config import DecoderEngineConfig
from nvlm_trt.decoder.graph_constants import matrix_constant
from nvlm_trt.decoder.precision import FP32
from nvlm_trt.decoder.session_cpu import DecoderSession, compile_properties
from nvlm_trt.decoder.step import StepPart
from nvlm_trt.environment.processor import processor
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.decoder import DecoderReference
from nvlm_trt.model.synthetic import tiny_spec, write_synthetic
from nvlm_trt.verify.yardstick import reduced_decoder

BLOCKS = 8
GROUP = 128
DOT_PRODUCTS = platform.machine() == "x86_64" and "int8" in processor().types
"""Without them OpenVINO leaves inputs as they are."""


def in_codes(values: torch.Tensor, group: int) -> torch.Tensor:
    """Whole multiples of a 127th of the largest of each group of neighbours; the ratio is a float32."""
    width = values.shape[-1]
    groups = F.pad(values.float(), (0, -width % group)).reshape(*values.shape[:-1], -1, group)
    step = groups.abs().amax(-1, keepdim=True) / 127
    rounded = (groups / step).round().double() * step.double()
    return rounded.reshape(*values.shape[:-1], -1)[..., :width]


class RoundedWeights(Checkpoint):
    """Matrices in 8 bits with a step a row, the embedding in bf16."""

    def __init__(self, path: Path) -> None:
        source = Checkpoint.open(path)
        super().__init__(source.path, source.config, source.tensors)

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        tensor = super().read(name)
        if name.endswith("embed_tokens.weight"):
            tensor = tensor.to(torch.bfloat16)
        elif tensor.ndim == 2:
            tensor = in_codes(tensor, tensor.shape[1])
        return tensor if dtype is None else tensor.to(dtype)


class RoundedInputs(TorchFunctionMode):
    """Every product with weights takes inputs in 8 bits, with a step for every token and every 128 of its values."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            args = (in_codes(args[0], GROUP), *args[1:])
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder wide enough for groups, the last of which is short in its MLP."""
    path = tmp_path_factory.mktemp("int8") / "checkpoint"
    spec = tiny_spec(tile_size=56, hidden_size=256, intermediate_size=704, decoder_layers=3, heads=8, kv_heads=4)
    write_synthetic(path, spec, seed=3)
    return path


@pytest.fixture(scope="module")
def engines(checkpoint: Path) -> Callable[[str], Path]:
    ranks = checkpoint.parent / "ranks"
    convert_decoder(Checkpoint.open(checkpoint), ranks, tp=1, pp=1, precision=FP32)

    def engine(precision: str) -> Path:
        path = checkpoint.parent / precision
        if not path.exists():
            limits = {"max_batch_size": 2, "max_seq_len": 128, "max_prompt_table_rows": 0}
            build_decoder_cpu(ranks, path, precision=precision, **limits)
        return path

    return engine


def session_of(engine: Path) -> DecoderSession:
    return DecoderSession(engine, DecoderEngineConfig.read(engine), BLOCKS, threads=1)


def prompt(seed: int, length: int) -> npt.NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, 500, length).astype(np.int32)


def last(session: DecoderSession, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    return session.run([StepPart(ids, 0, range(BLOCKS), None, wants_logits=True)])[0].copy()


def rms(values: npt.NDArray[np.floating]) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))


@pytest.mark.parametrize(("width", "rounds"), [(GROUP - 32, False), (GROUP, True), (7 * GROUP, True), (1000, True)])
def test_inputs_of_a_product_are_rounded_in_groups_unless_they_are_shorter(width: int, rounds: bool):
    """Exactly, where the rest is float32: it is what the yardstick of `verify` computes."""
    random = torch.Generator().manual_seed(width)
    weight, inputs = torch.randn(64, width, generator=random), torch.randn(9, width, generator=random)
    parameter = ops.parameter(ov.PartialShape([-1, width]), np.float32)
    product = ops.matmul(parameter, matrix_constant(weight, "weight", "int8_wo"), False, True)
    core = ov.Core()
    properties = compile_properties(core, "int8", 1) | {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    compiled = core.compile_model(ov.Model([product], [parameter], "product"), "CPU", properties)
    seen = torch.from_numpy(compiled([inputs.numpy()])[0])
    taken = in_codes(inputs, GROUP) if rounds and DOT_PRODUCTS else inputs.double()
    expected = taken @ in_codes(weight, width).T
    # Integers are summed exactly within a group; a thousand float32 products are not.
    bound = 1e-6 if DOT_PRODUCTS else 3e-6
    assert float((seen - expected).abs().max() / expected.abs().max()) < bound


def test_logits_are_as_near_to_fp32_as_those_of_the_rounded_decoder(engines, checkpoint):
    rounded = DecoderReference(RoundedWeights(checkpoint), torch.float64)
    reference = DecoderReference(Checkpoint.open(checkpoint))
    session = session_of(engines("int8"))
    seen, expected = [], []
    for seed in range(8):
        ids = prompt(seed, 60)
        exact = reference.logits(ids)[-1].numpy()
        with RoundedInputs():
            expected.append(rms(rounded.logits(ids)[-1].numpy() - exact))
        seen.append(rms(last(session, ids) - exact))
    assert np.mean(seen) < 1.5 * np.mean(expected), "the rest is computed in bf16, which rounds less than 8 bits"


def test_the_yardstick_of_verify_is_as_far_from_fp32_as_the_engine(engines, checkpoint):
    reference, session = DecoderReference(Checkpoint.open(checkpoint)), session_of(engines("int8"))
    yardstick = reduced_decoder(Checkpoint.open(checkpoint), "int8")
    assert yardstick is not None
    seen, expected = [], []
    for seed in range(8):
        ids = prompt(seed, 60)
        exact = reference.logits(ids)[-1].numpy()
        seen.append(rms(last(session, ids) - exact))
        expected.append(rms(yardstick.logits(ids)[-1].numpy() - exact))
    least = 0.7 if DOT_PRODUCTS else 0.3  # weights alone
    assert least < np.mean(seen) / np.mean(expected) < 1.4


def test_what_a_sequence_gets_hangs_on_its_batch_no_more_than_bf16_rounds(engines):
    session = session_of(engines("int8"))
    first, second = prompt(1, 40), prompt(2, 33)
    alone = last(session, first)
    parts = [StepPart(ids, 0, blocks, None, wants_logits=True) for ids, blocks in ((second, (5, 6)), (first, (2, 3)))]
    together = session.run(parts)[1]
    assert 1 - np.dot(alone, together) / np.linalg.norm(alone) / np.linalg.norm(together) < 0.002


def test_it_is_built_of_the_bytes_of_8_bit_weights(engines):
    for name in ("model.xml", "model.bin"):
        assert (engines("int8") / name).read_bytes() == (engines("int8_wo") / name).read_bytes()

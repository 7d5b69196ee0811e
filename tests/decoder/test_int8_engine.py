"""Engines that round weights and inputs to 8 bits, against a float64 decoder with rounding of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own short name
from torch.overrides import TorchFunctionMode

from nvlm_trt.decoder.engine_config import DecoderEngineConfig
from nvlm_trt.decoder.session_cpu import DecoderSession
from nvlm_trt.decoder.step import StepPart
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.decoder import DecoderReference

BLOCKS = 8


def in_codes(values: torch.Tensor, group: int) -> torch.Tensor:
    """Whole multiples of a 127th of the largest of each group of neighbours; the ratio is a float32."""
    groups = values.float().reshape(*values.shape[:-1], -1, group)
    step = groups.abs().amax(-1, keepdim=True) / 127
    return ((groups / step).round().double() * step.double()).reshape(values.shape)


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
    """Every product with weights takes inputs in 8 bits, with a step for every token and every 32 of its values."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            args = (in_codes(args[0], 32), *args[1:])
        return func(*args, **(kwargs or {}))


def session_of(engine: Path) -> DecoderSession:
    return DecoderSession(engine, DecoderEngineConfig.read(engine), BLOCKS, threads=1)


@pytest.fixture(scope="module")
def session(compiled: Callable[..., Path]) -> DecoderSession:
    return session_of(compiled("int8"))


def last(session: DecoderSession, ids: npt.NDArray[np.int32], table: npt.NDArray[np.float32] | None) -> Any:
    return session.run([StepPart(ids, 0, range(BLOCKS), table, wants_logits=True)])[0].copy()


def rms(values: npt.NDArray[np.floating]) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))


def test_logits_are_those_of_the_rounded_decoder(session, compiled, decoder_checkpoint, reference, make_prompt):
    """To float tolerance, unless an input lies so near to the middle of two codes that the last bit decides."""
    rounded = DecoderReference(RoundedWeights(decoder_checkpoint), torch.float64)
    plain = session_of(compiled("int8_wo"))
    off, error, without = [], [], []
    for seed in range(6):
        ids, table = make_prompt(seed, 60, 16 * (seed % 2))
        with RoundedInputs():
            expected = rounded.logits(ids, table)[-1].numpy()
        off.append(rms(last(session, ids, table) - expected))
        error.append(rms(reference.logits(ids, table)[-1].numpy() - expected))
        without.append(rms(last(plain, ids, table) - expected))
    scale = np.mean(error)
    assert sum(each < 1e-5 * scale for each in off) >= 2
    assert np.mean(off) < 0.5 * scale
    assert min(without) > 0.1 * scale, "inputs that are not rounded would be noticed"


def test_what_a_sequence_gets_does_not_hang_on_its_batch(session, make_prompt):
    first, second = make_prompt(1, 40)[0], make_prompt(2, 33)[0]
    alone = last(session, first, None)
    parts = [StepPart(ids, 0, blocks, None, wants_logits=True) for ids, blocks in ((second, (5, 6)), (first, (2, 3)))]
    assert np.abs(session.run(parts)[1] - alone).max() < 1e-4 * np.abs(alone).max()


def test_it_is_built_of_the_bytes_of_8_bit_weights(compiled):
    for name in ("model.xml", "model.bin"):
        assert (compiled("int8") / name).read_bytes() == (compiled("int8_wo") / name).read_bytes()

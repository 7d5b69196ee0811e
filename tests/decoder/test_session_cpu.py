"""A session computes in the type that its precision promises, and keeps keys and values as it is told."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from nvlm_trt.decoder.engine_config import DecoderEngineConfig
from nvlm_trt.decoder.session_cpu import INPUT_GROUP, KERNELS, PRIMITIVES, DecoderSession, compile_properties
from nvlm_trt.decoder.step import StepPart
from nvlm_trt.errors import ServerError

BLOCKS = 8


class Plugin:
    """What is asked of an OpenVINO core before it compiles: what its CPU computes in."""

    def __init__(self, *capabilities: str) -> None:
        self._capabilities = capabilities

    def get_property(self, device: str, name: str) -> Sequence[str]:
        assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
        return self._capabilities


OLD, NEW = Plugin("FP32", "INT8"), Plugin("FP32", "INT8", "BF16")


@pytest.mark.parametrize("precision", ["fp32", "int8_wo", "int4_wo"])
def test_exact_precisions_compute_and_cache_in_float32_on_any_cpu(precision: str):
    properties = compile_properties(NEW, precision, 0)
    assert properties["INFERENCE_PRECISION_HINT"] == properties["KV_CACHE_PRECISION"] == "f32"
    assert properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == "0"


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize(("plugin", "expected"), [(NEW, "bf16"), (OLD, "f32")])
def test_fast_precisions_take_bf16_where_the_cpu_has_it(precision: str, plugin: Plugin, expected: str):
    properties = compile_properties(plugin, precision, 0)
    assert properties["INFERENCE_PRECISION_HINT"] == properties["KV_CACHE_PRECISION"] == expected


def test_int8_alone_rounds_inputs():
    groups = {name: compile_properties(NEW, name, 0)["DYNAMIC_QUANTIZATION_GROUP_SIZE"] for name in ("bf16", "int8")}
    assert groups == {"bf16": "0", "int8": str(INPUT_GROUP)}


def test_threads_are_named_only_where_they_are_chosen():
    assert "INFERENCE_NUM_THREADS" not in compile_properties(NEW, "fp32", 0)
    assert compile_properties(NEW, "fp32", 3)["INFERENCE_NUM_THREADS"] == "3"


GROWTH = """
import sys
from pathlib import Path
import numpy as np
import psutil
from nvlm_trt.decoder import session_cpu
from nvlm_trt.decoder.engine_config import DecoderEngineConfig
from nvlm_trt.decoder.step import StepPart

session_cpu.KERNELS, session_cpu.PRIMITIVES = map(int, sys.argv[2:])
config = DecoderEngineConfig.read(Path(sys.argv[1]))
session = session_cpu.DecoderSession(Path(sys.argv[1]), config, 64, 1)
blocks, before = tuple(range(64)), 0
for tokens in (5, *np.random.default_rng(0).permutation(300)):
    session.run([StepPart(np.full(1 + tokens, 7, np.int32), 0, blocks, None, True)])
    before = before or psutil.Process().memory_info().rss
print(psutil.Process().memory_info().rss - before)
"""


def test_steps_of_ever_new_lengths_do_not_take_ever_more_memory(compiled: Callable[..., Path]):
    def grown(kernels: int, primitives: int) -> int:
        words = [sys.executable, "-c", GROWTH, str(compiled("int8_wo")), str(kernels), str(primitives)]
        return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)

    assert grown(KERNELS, PRIMITIVES) < grown(5000, 1024) / 2  # OpenVINO's own bounds


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8_wo"])
def test_a_cache_in_8_bits_keeps_the_direction_of_the_logits(compiled: Callable[..., Path], make_prompt, precision):
    """In chunks, so that keys and values are read from the cache as later steps find them."""
    engine = compiled(precision)
    config = DecoderEngineConfig.read(engine)
    plain, small = (DecoderSession(engine, config, BLOCKS, 1, kv_cache) for kv_cache in ("auto", "u8"))
    for seed in range(4):
        ids, table = make_prompt(seed, 90, 16 * (seed % 2))
        expected, seen = (in_chunks(session, ids, table) for session in (plain, small))
        distance = 1 - np.dot(expected, seen) / np.linalg.norm(expected) / np.linalg.norm(seen)
        assert 0 < distance < 0.02, "it rounds, and not too much"


def in_chunks(
    session: DecoderSession, ids: npt.NDArray[np.int32], table: npt.NDArray[np.float32] | None
) -> npt.NDArray[np.float32]:
    for past in range(0, len(ids), 30):
        part = StepPart(ids[past : past + 30], past, range(BLOCKS), table, wants_logits=True)
        logits = session.run([part])[0]
    return logits.copy()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_step_that_is_ended_leaves_no_shapes_behind(compiled: Callable[..., Path], make_prompt, precision):
    """A step like the one before the ended one is the case in which operators would take their shapes for known."""
    engine = compiled(precision)
    session = DecoderSession(engine, DecoderEngineConfig.read(engine), BLOCKS, 1)
    ids, table = make_prompt(5, 90, 16)

    def step(*counts: int) -> npt.NDArray[np.float32]:
        """As many prompts as counts, each of so many tokens and in blocks of its own."""
        blocks = [range(2 * place, 2 * place + 2) for place in range(len(counts))]
        return session.run(
            [StepPart(ids[:count], 0, own, table, wants_logits=True) for count, own in zip(counts, blocks, strict=True)]
        ).copy()

    steps = [(1,), (7,), (7, 1), (40,), (1, 1), (20, 3, 9), (2,), (5, 5, 5, 5), (60,)]
    expected = {counts: step(*counts) for counts in steps}
    ended = 0
    for trial in range(1000):
        before, between = steps[trial % len(steps)], steps[(trial // len(steps) + trial + 1) % len(steps)]
        assert np.array_equal(step(*before), expected[before])
        end = threading.Timer(trial % 40 * 1e-5, session.cancel)
        end.start()
        try:
            step(*between)
        except RuntimeError:
            ended += 1
        end.join()
        assert np.array_equal(step(*before), expected[before]), (before, between)
        if ended == 200:
            break
    assert ended >= 50, "steps were ended"


def test_a_step_that_was_given_up_before_it_begins_is_not_run(compiled: Callable[..., Path], make_prompt):
    engine = compiled("fp32")
    session = DecoderSession(engine, DecoderEngineConfig.read(engine), BLOCKS, 1)
    ids, table = make_prompt(6, 30, 0)
    part = StepPart(ids, 0, range(BLOCKS), table, wants_logits=True)
    expected = session.run([part]).copy()
    with pytest.raises(ServerError, match="given up"):
        session.run([StepPart(ids[:7], 0, range(BLOCKS), table, wants_logits=True)], lambda: True)
    assert np.array_equal(session.run([part]), expected)

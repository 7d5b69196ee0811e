"""A compiled decoder and its KV cache: one step at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import openvino as ov

from nvlm_trt.decoder.attention_cpu import splice_attention
from nvlm_trt.decoder.engine_config import BF16_COMPUTE, MODEL_NAME, DecoderEngineConfig
from nvlm_trt.decoder.step import StepPart
from nvlm_trt.errors import EngineError, ServerError

Ints = npt.NDArray[np.int32]

INPUT_GROUP = 128
"""Values of a token that share a scale where inputs are quantised; OpenVINO leaves shorter inputs as they are.

Groups of 32, OpenVINO's own choice, cost a fifth of the speed at which prompts are read, for an error that is not seen
in the logits (docs/performance/cpu-steps.md).
"""

KERNELS, PRIMITIVES = 256, 128
"""Kernels that OpenVINO and its oneDNN keep for numbers of tokens that a step has had; some five go with each number.

Left to themselves they keep 5,000 and 1,024, and a prompt may end in a step of any number of tokens: the miniature's
process grew by 0.9 MB with each new one, up to hundreds of MB (docs/performance/cpu-steps.md).
"""

KvCachePrecision = Literal["auto", "u8"]


def _wanted() -> bool:
    return False


class DecoderSession:
    """Runs steps of packed sequences. Not thread-safe but for `cancel`: the engine's worker owns it.

    fp32, int8_wo and int4_wo engines compute and cache in float32: what a sequence gets does not hang on its batch, up
    to float32 rounding. int8 engines round the inputs of every product with weights to 8 bits, with a scale for each
    token and each `INPUT_GROUP` of its values, and multiply integers; no other engine quantises activations. bf16 and
    int8 engines compute and cache in bf16 where the CPU can, and OpenVINO rounds one row and several rows differently
    there: a near tie may fall otherwise in another batch.

    Args:
        directory: What `build_decoder_cpu` wrote.
        config: Its config.json.
        num_blocks: Blocks of the KV cache.
        threads: Threads to compute with; 0 leaves it to OpenVINO.
        kv_cache: How keys and values are kept: "auto" in the type that is computed in, "u8" in 8 bits.

    Raises:
        EngineError: the model is missing, or OpenVINO cannot compile it.
    """

    def __init__(
        self,
        directory: Path,
        config: DecoderEngineConfig,
        num_blocks: int,
        threads: int = 0,
        kv_cache: KvCachePrecision = "auto",
    ) -> None:
        self._config = config
        self._no_table = np.zeros((1, config.hidden_size), np.float32)
        # oneDNN reads it when it makes its first primitive, and has no other way to be told
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRIMITIVES))
        try:
            core = ov.Core()
            model = splice_attention(core.read_model(directory / MODEL_NAME), config)
            compiled = core.compile_model(model, "CPU", compile_properties(core, config.precision, threads, kv_cache))
        except RuntimeError as error:
            first = str(error).strip().splitlines()[-1] if str(error).strip() else "no reason given"
            raise EngineError(
                f"the compiled decoder cannot be loaded ({first})", fix="build the engine again"
            ) from None
        self._request = compiled.create_infer_request()
        self._lock = threading.Lock()
        self._can_be_ended = False
        self._tokens = 0
        for port in compiled.inputs:
            if "_cache." in port.any_name:  # an 8-bit block is larger than its values: it has their scales
                shape = [num_blocks, *(dimension.get_length() for dimension in list(port.partial_shape)[1:])]
                self._request.set_tensor(port, ov.Tensor(port.element_type, ov.Shape(shape)))

    def run(self, parts: Sequence[StepPart], given_up: Callable[[], bool] = _wanted) -> npt.NDArray[np.float32]:
        """Run one step.

        Args:
            parts: What each sequence brings.
            given_up: Whether nobody wants it any more; asked when all is prepared, so that no `cancel` comes too early.

        Returns:
            float32 [parts that want logits, vocab_size], valid until the next step.

        Raises:
            ServerError: it was given up before it began.
            RuntimeError: it was ended, or OpenVINO failed.
        """
        self._prepare(self._inputs(parts))
        with self._lock:
            if given_up():
                raise ServerError("the step was given up")
            self._request.start_async()
            self._can_be_ended = True
        failure = None
        try:
            self._request.wait()  # infer() of one thread cannot be cancelled
        except RuntimeError as error:
            failure = error
        with self._lock:
            self._can_be_ended = False
        if failure is not None:
            self._forget(parts[0])
            raise failure
        self._tokens = sum(len(part.input_ids) for part in parts)
        logits: npt.NDArray[np.float32] = self._request.get_tensor("logits").data
        return logits[: sum(part.wants_logits for part in parts)]

    def cancel(self) -> None:
        """End the step that runs, from another thread, at the next operator of its graph: its `run` raises.

        What it wrote to the cache is of no meaning. Nothing to do where none runs.
        """
        with self._lock:
            if self._can_be_ended:
                self._request.cancel()

    def _prepare(self, inputs: Mapping[str, npt.NDArray[np.generic]]) -> None:
        for name, array in inputs.items():
            self._request.set_tensor(name, ov.Tensor(array))

    def _forget(self, part: StepPart) -> None:
        """Make the graph sound again after a step that did not come to its end.

        OpenVINO gives all operators their outputs' shapes before it runs the first, and lets each remember the shapes
        of its inputs once it ran: it works shapes out again only where its inputs have others. So an operator that did
        not run would keep the shapes of the ended step, if the next one had those of the step before: it would fail, or
        compute something else. A small step that has nothing in common with the step before lets every operator forget.

        Args:
            part: A part of the ended step, whose request ends with it: the block that it was to write is written to.
        """
        own = part.blocks[part.past // self._config.block_size]
        ids = np.zeros(2 if self._tokens == 1 else 1, np.int32)
        inputs = self._inputs([StepPart(ids, 0, [own], None, wants_logits=False)])
        empty = {"logit_rows": _int32([]), "prompt_table": self._no_table[:0]}  # no other step has none of either
        self._prepare({**inputs, **empty})
        self._request.infer()
        self._tokens = len(ids)

    def _inputs(self, parts: Sequence[StepPart]) -> dict[str, npt.NDArray[np.generic]]:
        counts = [len(part.input_ids) for part in parts]
        ends = np.cumsum(counts)
        lengths = [part.past + count for part, count in zip(parts, counts, strict=True)]
        used = [
            part.blocks[: -(-length // self._config.block_size)] for part, length in zip(parts, lengths, strict=True)
        ]
        ids, table = self._pack_table(parts)
        # One row always goes through the output matrix, also in a step that reads unfinished prompts only.
        rows = [end - 1 for end, part in zip(ends, parts, strict=True) if part.wants_logits] or [0]
        return {
            "input_ids": ids,
            "position_ids": _int32(
                np.concatenate([np.arange(part.past, end) for part, end in zip(parts, lengths, strict=True)])
            ),
            "prompt_table": table,
            "logit_rows": _int32(rows),
            "past_lens": _int32([part.past for part in parts]),
            "subsequence_begins": _int32([0, *ends]),
            "block_indices": _int32([block for blocks in used for block in blocks]),
            "block_indices_begins": _int32([0, *np.cumsum([len(blocks) for blocks in used])]),
            "max_context_len": _int32(max(lengths)),
        }

    def _pack_table(self, parts: Sequence[StepPart]) -> tuple[Ints, npt.NDArray[np.float32]]:
        """The step's ids, visual ones renumbered to the rows of one table that holds only the rows of this step."""
        first, rows, ids = self._config.vocab_size, 0, []
        tables = []
        for part in parts:
            visual = part.input_ids >= first
            if part.table is None or not visual.any():
                ids.append(part.input_ids)
                continue
            tables.append(part.table[part.input_ids[visual] - first])
            packed = part.input_ids.copy()
            packed[visual] = first + rows + np.arange(len(tables[-1]), dtype=np.int32)
            rows += len(tables[-1])
            ids.append(packed)
        return np.concatenate(ids), np.concatenate(tables) if tables else self._no_table


def compile_properties(
    core: ov.Core, precision: str, threads: int, kv_cache: KvCachePrecision = "auto"
) -> dict[str, str]:
    """How OpenVINO compiles the decoder of a precision; 0 threads takes all cores."""
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    compute = "bf16" if precision in BF16_COMPUTE and has_bf16 else "f32"
    properties = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_PRECISION_HINT": compute,
        "KV_CACHE_PRECISION": compute if kv_cache == "auto" else kv_cache,
        "CPU_RUNTIME_CACHE_CAPACITY": str(KERNELS),
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(INPUT_GROUP if precision == "int8" else 0),
    }
    if threads:
        properties["INFERENCE_NUM_THREADS"] = str(threads)
    return properties


def _int32(values: object) -> Ints:
    return np.asarray(values, np.int32)

"""Triton model `tensorrt_llm` of the cpu target: the C++ backend's interface over the decoder engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from nvlm_trt.decoder.engine import DecoderEngine
from nvlm_trt.decoder.kv_memory import KvCacheSettings
from nvlm_trt.decoder.stages import Stages
from nvlm_trt.engine_files import DECODER_CPU
from nvlm_trt.errors import EngineError
from nvlm_trt.serving.decoder_tensors import CACHED_TOKENS, LOG_PROBS
from nvlm_trt.serving.heartbeat import Heartbeat, Progress, shared_directory
from nvlm_trt.serving.llm import LlmServer, padded
from nvlm_trt.serving.models.base import Model
from nvlm_trt.serving.models.metrics import KV_COUNTERS, KV_GAUGES, ModelMetrics
from nvlm_trt.serving.models.tensors import FINAL, failure, inputs_of, is_cancelled, response, wants_codes
from nvlm_trt.turns import Turns

LOG_PROB_NAMES: Final = frozenset(name for name, _, _ in LOG_PROBS)
CACHED: Final = CACHED_TOKENS[0]


class _Channel:
    """The way back to one client.

    Args:
        request: Triton's.
        pad: The id in place of no id.
    """

    def __init__(self, request: Any, pad: int) -> None:
        wanted = request.requested_output_names()
        self._sender = request.get_response_sender()
        self._coded = wants_codes(request)
        self._pad = pad
        self._with_log_probs = LOG_PROB_NAMES.issubset(wanted)
        self._with_cached = CACHED in wanted
        self._sum = 0.0

    def send(self, ids: list[int], *, final: bool, log_probs: Sequence[float] = (), cached: int = 0) -> None:
        """Send tokens. The last response carries tensors too: 2.51 does not deliver a bare final flag from here."""
        output_ids, length = padded(ids, self._pad)
        outputs = {"output_ids": output_ids, "sequence_length": np.array([[length]], np.int32)}
        if self._with_log_probs:
            self._sum += sum(log_probs)
            outputs["output_log_probs"] = np.array([[list(log_probs) or [0.0]]], np.float32)
            outputs["cum_log_probs"] = np.array([[self._sum]], np.float32)
        if self._with_cached:
            outputs[CACHED] = np.array([[cached]], np.int32)
        self._sender.send(response(outputs), flags=FINAL if final else 0)

    def fail(self, error: Exception) -> None:
        """Send an error and end."""
        self._sender.send(failure(error, coded=self._coded), flags=FINAL)

    def is_cancelled(self) -> bool:
        """Whether the client gave the request up."""
        return is_cancelled(self._sender)


class _StageMetrics:
    """Shows how long requests waited and were read."""

    def __init__(self, metrics: ModelMetrics) -> None:
        self._queue = metrics.seconds("nvlm_decoder_queue_seconds", "From a request's coming to its first step")
        self._prefill = metrics.seconds(
            "nvlm_decoder_prefill_seconds", "From a request's first step to its first token"
        )

    def observe(self, stages: Stages) -> None:
        """Note the stages of a request, as far as it came."""
        if stages.began is not None:
            self._queue.observe(stages.began - stages.queued)
        if stages.began is not None and stages.first is not None:
            self._prefill.observe(stages.first - stages.began)


class TritonPythonModel(Model):
    """Decodes with continuous batching; `execute` only hands requests over."""

    def load(self) -> None:
        """Load the compiled decoder."""
        fields = self.spec.cpu
        if fields is None:
            raise EngineError("the repository is of the gpu target", fix="package the engine again")
        self.turns = Turns(shared_directory())
        self.engine = DecoderEngine.load(
            self.engine_dir / DECODER_CPU,
            threads=self.spec.cpu_threads,
            cache=KvCacheSettings(fields.kv_cache_mib, fields.kv_cache_precision, fields.kv_cache_reuse),
            turns=self.turns,
        )
        status = self.metrics.status(KV_COUNTERS, KV_GAUGES)
        status.report(self.engine.status())  # they are shown before the first request
        self.server = LlmServer(
            self.engine,
            self.spec.vocab_size,
            status.report,
            _StageMetrics(self.metrics).observe,
            lost=self.answer_lost,
        )

    def make_heartbeat(self, name: str) -> Heartbeat:
        """Tell whether the engine's worker turns, and whether what it makes is sent.

        An idle worker turns, too, and one that waits for its turn need not. A send that does not end is tritonserver's
        fault: its streams of gRPC have been seen to block each other for ever when a client left.
        """
        decoding = Progress(lambda: None if self.turns.waiting else self.engine.heartbeat)
        sending = Progress(lambda: self.server.sending.position, computed=self.server.sending.computed)
        return Heartbeat(name, still=lambda: max(decoding(), sending()), active=lambda: self.server.active)

    def execute(self, requests: Sequence[Any]) -> None:
        """Queue requests."""
        for request in requests:
            channel = _Channel(request, pad=0)
            tensors = inputs_of(request, self.input_names)
            self.server.submit(tensors, request.request_id(), channel, self.span_of(request))

    def finalize(self) -> None:
        """End the engine and everything that is under way."""
        self.engine.close()
        self.server.close()
        super().finalize()

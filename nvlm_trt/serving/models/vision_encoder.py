"""Triton model `vision_encoder` of the cpu target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nvlm_trt.engine_files import VISION_CPU
from nvlm_trt.errors import EngineError
from nvlm_trt.serving.config_parts import TABLE
from nvlm_trt.serving.decoder_tensors import STOP
from nvlm_trt.serving.heartbeat import Heartbeat, Progress, shared_directory
from nvlm_trt.serving.models.base import Model
from nvlm_trt.serving.models.metrics import VISION_CACHE_COUNTERS, VISION_CACHE_GAUGES
from nvlm_trt.serving.models.tensors import FINAL, failure, inputs_of, response, wants_codes
from nvlm_trt.serving.preprocessing import TILES
from nvlm_trt.serving.requests import parse_flag
from nvlm_trt.serving.vision_encoder import Rows, VisionServer
from nvlm_trt.turns import Turns
from nvlm_trt.vision.encoder import TileEncoder
from nvlm_trt.vision.runner import VisionRunner


class _Channel:
    """The way back to one request."""

    def __init__(self, request: Any) -> None:
        self._sender = request.get_response_sender()
        self._coded = wants_codes(request)

    def send(self, rows: Rows) -> None:
        """Send rows by tile as one table, and end."""
        self._sender.send(response({TABLE: rows.reshape(1, -1, rows.shape[-1])}), flags=FINAL)

    def fail(self, error: Exception) -> None:
        """Send an error and end."""
        self._sender.send(failure(error, coded=self._coded), flags=FINAL)


class TritonPythonModel(Model):
    """Tiles of a request to its prompt table. `execute` only hands requests over."""

    def load(self) -> None:
        """Load the compiled vision encoder."""
        if self.spec.cpu is None:
            raise EngineError("the repository is of the gpu target", fix="package the engine again")
        self.turns = Turns(shared_directory())
        runner = VisionRunner(self.engine_dir / VISION_CPU, threads=self.spec.cpu_threads, turns=self.turns)
        self.encoder = TileEncoder(runner, cache_bytes=self.spec.cpu.vision_cache_mib << 20)
        status = self.metrics.status(VISION_CACHE_COUNTERS, VISION_CACHE_GAUGES)
        status.report(self.encoder.status())  # the bound is shown before the first request
        seconds = self.metrics.seconds("nvlm_vision_seconds", "From a request's coming to the rows of its tiles")
        self.server = VisionServer(self.encoder, status.report, observe=seconds.observe, lost=self.answer_lost)

    def make_heartbeat(self, name: str) -> Heartbeat:
        """Tell whether tiles that wait are encoded, slice by slice, and whether their rows are sent."""
        encoding = Progress(lambda: self.turns.count if self.encoder.busy and not self.turns.waiting else None)
        sending = Progress(lambda: self.server.sending.position, computed=self.server.sending.computed)
        return Heartbeat(name, still=lambda: max(encoding(), sending()), active=lambda: self.encoder.waiting)

    def execute(self, requests: Sequence[Any]) -> list[None]:
        """Queue the tiles of each request."""
        for request in requests:
            tensors, span = inputs_of(request, self.input_names), self.span_of(request).child("vision")
            if parse_flag(tensors, STOP):
                self.server.stop(request.request_id())
            channel = _Channel(request)
            self.server.submit(tensors[TILES], channel, span, client_id=request.request_id())
        return [None] * len(requests)

    def finalize(self) -> None:
        """End the encoder and everything that waits for it."""
        self.server.close()
        super().finalize()

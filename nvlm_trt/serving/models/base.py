"""What every Python model of the repository does when it is initialised."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nvlm_trt import logs
from nvlm_trt.collector import set_aside
from nvlm_trt.serving.fields import TRACEPARENT
from nvlm_trt.serving.heartbeat import Heartbeat, Progress, Work
from nvlm_trt.serving.models.metrics import ModelMetrics
from nvlm_trt.serving.models.tensors import failure, input_names, model_directory, output_names, parameters
from nvlm_trt.serving.spec import spec_of
from nvlm_trt.tracing import UNTRACED, Span, Tracer, tracer_from_environment


class Model:
    """A Triton Python model.

    Attributes:
        spec: Shapes and limits.
        engine_dir: The engine directory.
        input_names: Names of the model's inputs.
        output_names: Those of its outputs.
        tracer: Makes spans; None where nobody asked for traces.
        work: The requests that it works on, one at a time.
        metrics: What it shows; there from the beginning, as a model that could not be initialized is finalized, too.
    """

    heartbeat: Heartbeat | None = None
    tracer: Tracer | None = None

    def __init__(self) -> None:
        self.metrics = ModelMetrics()

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called by Triton when the model is loaded; an exception here fails the server's start."""
        logs.set_up()
        self.work = Work()
        config = json.loads(args["model_config"])
        self.tracer = tracer_from_environment(str(config["name"]))
        self.spec, self.engine_dir = spec_of(config["parameters"], model_directory(args))
        self.input_names, self.output_names = input_names(config), output_names(config)
        self.load()
        self.heartbeat = self.make_heartbeat(str(config["name"]))
        set_aside()

    def load(self) -> None:
        """Load what the model needs."""

    def make_heartbeat(self, name: str) -> Heartbeat:
        """Start the process's heartbeat: it tells whether requests go on (`one`)."""
        still = Progress(lambda: self.work.position)
        return Heartbeat(name, still=still, active=lambda: int(self.work.going))

    def answer_lost(self) -> None:
        """A last response could not be sent, and the backend sends none after it: the process has to be replaced."""
        if self.heartbeat is not None:
            self.heartbeat.condemn()

    def finalize(self) -> None:
        """Called by Triton before the process ends; the model's own threads have ended by now."""
        self.metrics.close()
        if self.heartbeat is not None:
            self.heartbeat.stop()
        if self.tracer is not None:
            self.tracer.close()

    def span_of(self, request: Any) -> Span:
        """The span, of another process, that asked for a request; its stages here become children of it."""
        return UNTRACED if self.tracer is None else self.tracer.remote(parameters(request).get(TRACEPARENT))

    def each(self, requests: Sequence[Any], run: Callable[[Any], Any]) -> list[Any]:
        """Run every request of a batch by itself: one that fails answers with its own error and harms no other."""
        responses = []
        for request in requests:
            with self.work.one():
                try:
                    responses.append(run(request))
                except Exception as error:
                    responses.append(failure(error))
        return responses

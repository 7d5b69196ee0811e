"""Metrics of a Python model end when it is told to end, each before its family."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest


@pytest.fixture
def ended(backend):
    """What has ended, in that order."""
    ends = []

    class Metric:
        def __init__(self, name):
            self.name = name

        def set(self, value):
            """Takes a value."""

        increment = observe = set

        def __del__(self):
            ends.append(self.name)

    class Family(Metric):
        COUNTER = GAUGE = HISTOGRAM = "a kind"

        def __init__(self, name, description, kind):
            super().__init__(f"family of {name}")
            self.of = name

        def Metric(self, labels, buckets=None):  # noqa: N802 - its name
            return Metric(self.of)

    backend.MetricFamily = Family
    return ends


def test_metrics_end_before_the_interpreter_does_though_others_still_hold_their_owners(ended):
    metrics = importlib.import_module("nvlm_trt.serving.models.metrics").ModelMetrics()
    seconds = metrics.seconds("seconds", "")
    status = metrics.status({"total": ("number", "")}, {"gauge": ("number", "")})
    observe, report = seconds.observe, status.report  # as the servers of the models hold them
    observe(0.5)
    report(SimpleNamespace(number=1))
    assert ended == []
    metrics.close()
    assert sorted(ended) == ["family of gauge", "family of seconds", "family of total", "gauge", "seconds", "total"]
    assert all(ended.index(name) < ended.index(f"family of {name}") for name in ("gauge", "seconds", "total"))
    report(SimpleNamespace(number=2))  # a status that is told late harms nobody
    metrics.close()  # nor does a second end


def test_a_model_that_could_not_be_initialized_is_finalized_and_its_metrics_end(ended):
    base = importlib.import_module("nvlm_trt.serving.models.base")
    model = base.Model()
    model.metrics.seconds("seconds", "")
    with pytest.raises(KeyError):
        model.initialize({})
    model.finalize()
    assert ended == ["seconds", "family of seconds"]

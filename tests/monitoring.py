"""The queries of the dashboard, of the rules and of the autoscaler."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import promql_parser
import yaml

PLACE = Path(__file__).parents[1] / "build" / "monitoring"
RULES = PLACE / "rules.yaml"
VARIABLES = {"$__rate_interval": "5m", "$instance": ".*"}
SCRAPED = frozenset({"instance", "job"})
"""Labels that Prometheus adds."""
MADE = frozenset({"up"})
"""Metrics that Prometheus makes."""
ON_GPUS = {
    name: [{label: value, "model": "tensorrt_llm", "version": "1"} for value in values]
    for name, label, values in (
        ("nv_trt_llm_kv_cache_block_metrics", "kv_cache_block_type", ("max", "free", "used", "fraction")),
        ("nv_trt_llm_request_metrics", "request_type", ("active", "max", "scheduled", "context", "waiting")),
    )
}
"""Labels of what the C++ backend shows: custom_metrics_reporter.cc of triton-inference-server/tensorrtllm_backend."""


@dataclass(frozen=True)
class Selector:
    """A metric that a query asks for."""

    name: str
    matchers: tuple[tuple[str, str, str], ...]


def rules() -> list[dict]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict]:
    return json.loads((PLACE / "dashboard.json").read_text())["panels"]


def queries(*, interval: str = "5m") -> dict[str, str]:
    """Each query by where it stands, its variables filled in."""
    found = {f"rule {rule.get('alert') or rule['record']}": rule["expr"] for rule in rules()}
    for panel in panels():
        for target in panel.get("targets", ()):
            text = target["expr"]
            for name, value in {**VARIABLES, "$__rate_interval": interval}.items():
                text = text.replace(name, value)
            found[f"panel {panel['title']!r} {panel['id']}{target['refId']}"] = text
    return found


def adapted() -> dict[str, str]:
    """Queries of the autoscaler by its metrics, as prometheus-adapter fills them in, for whatever was scraped."""
    values = yaml.safe_load((PLACE.parent / "kubernetes" / "autoscaling" / "prometheus-adapter.yaml").read_text())
    filled = {"<<.LabelMatchers>>": 'instance=~".*"', "<<.GroupBy>>": "instance"}
    found = {}
    for rule in values["rules"]["custom"]:
        text = rule["metricsQuery"]
        for name, value in filled.items():
            text = text.replace(name, value)
        found[rule["name"]["as"]] = text
    return found


def selectors(expression: object) -> Iterator[Selector]:
    if isinstance(expression, promql_parser.VectorSelector):
        matchers = [(one.name, str(one.op).rpartition(".")[2], one.value) for one in expression.matchers.matchers]
        yield Selector(str(expression.name), tuple(matchers))
    for part in ("lhs", "rhs", "expr", "param", "vector_selector"):
        if (inner := getattr(expression, part, None)) is not None:
            yield from selectors(inner)
    for inner in getattr(expression, "args", None) or ():
        yield from selectors(inner)


def grouped(expression: object) -> Iterator[tuple[set[str], list[Selector]]]:
    """Labels of each ``by`` clause, with what it groups."""
    if isinstance(expression, promql_parser.AggregateExpr) and expression.modifier is not None:
        yield set(expression.modifier.labels), list(selectors(expression.expr))
    for part in ("lhs", "rhs", "expr", "param"):
        if (inner := getattr(expression, part, None)) is not None:
            yield from grouped(inner)
    for inner in getattr(expression, "args", None) or ():
        yield from grouped(inner)


def documented() -> dict[str, set[str]]:
    """Labels of the metrics that docs/observability.md lists."""
    text = (PLACE.parents[1] / "docs" / "observability.md").read_text()
    listed = {}
    for name, kind in re.findall(r"^\| `(nvlm_\w+)` \| ([^|]+) \|", text, re.MULTILINE):
        listed[name] = set(re.findall(r"`(\w+)`", kind))
    return listed

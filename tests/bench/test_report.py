"""The report as JSON: its schema, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from nvlm_trt.bench.record import PeerRecord
from nvlm_trt.bench.report import SCHEMA_FILE, Range, Report, read_report, schema_bytes
from nvlm_trt.errors import UserError

from .made_up import made_columns, made_report, made_round


def test_the_published_schema_is_that_of_the_code() -> None:
    """After a change that is meant: `SCHEMA_FILE.write_bytes(schema_bytes())`, and a new FORMAT if need be."""
    assert SCHEMA_FILE.read_bytes() == schema_bytes()


def test_every_key_of_a_report_is_in_the_schema(scenario_report: Report) -> None:
    report, schema = scenario_report, json.loads(SCHEMA_FILE.read_text())
    check(json.loads(report.encoded()), schema, schema["$defs"])


def check(value: Any, schema: dict[str, Any], definitions: dict[str, Any]) -> None:
    """The part of JSON Schema that a report needs: types, members, and members that are not known."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rsplit("/", 1)[-1]]
    if "anyOf" in schema:
        faults = []
        for choice in schema["anyOf"]:
            try:
                return check(value, choice, definitions)
            except AssertionError as error:
                faults.append(error)
        raise AssertionError(faults)
    if "enum" in schema:
        assert value in schema["enum"]
    if "const" in schema:
        assert value == schema["const"]
    kinds: dict[str, Any] = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "null": type(None),
    }
    if "type" in schema:
        assert isinstance(value, kinds[schema["type"]]), (value, schema)
    if schema.get("type") == "array":
        for item in value:
            check(item, schema["items"], definitions)
    if schema.get("type") == "object":
        members = schema.get("properties", {})
        assert set(schema.get("required", ())) <= set(value)
        others = schema.get("additionalProperties", True)
        for key, member in value.items():
            assert key in members or others is not False, key
            check(member, members.get(key, others), definitions)
    return None


def test_a_report_comes_back_as_it_was(scenario_report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(scenario_report.encoded())
    assert read_report(path) == scenario_report


def test_a_report_from_before_there_were_scenarios_is_read(report: Report, tmp_path: Path) -> None:
    raw = json.loads(report.encoded())
    del raw["growth"], raw["workload"]["scenarios"], raw["workload"]["repeats"]
    for subject in raw["subjects"]:
        for figure in subject["figures"]:
            del figure["size"]
    path = tmp_path / "report.json"
    path.write_text(json.dumps(raw))
    assert read_report(path).subjects == report.subjects


def test_figures_hold_samples_ranges_and_ratios_to_the_baseline(report: Report) -> None:
    baseline, engine, served = report.subjects
    figure = engine.figure("ttft", 1)
    assert figure is not None
    assert figure.samples == pytest.approx((500.0, 600.0, 700.0))
    assert figure.range == Range(value=600.0, low=550.0, high=650.0, n=3, spread="quartiles")
    assert figure.ratio == pytest.approx(0.5)
    assert all(each.ratio == 1.0 for each in baseline.figures if each.range.value)
    assert served.failure == "the server died"
    assert served.rounds == 1
    assert served.figure("vision_gflops") is None


def test_a_ceiling_is_the_best_of_both_libraries(report: Report) -> None:
    read, fp32 = report.ceilings
    assert (read.name, read.by, read.best, read.unit) == ("read", "torch", 11.0, "GB/s")
    assert (fp32.name, fp32.by, fp32.best, fp32.unit) == ("fp32", "OpenVINO", 210.0, "GFLOP/s")
    assert fp32.range.n == 2


def test_tools_of_others_stand_beside_our_own_figures_of_the_same_rounds() -> None:
    columns = made_columns()
    served = columns[2]
    for ttft in (490.0, 500.0):
        figures = {"ttft": (ttft,), "tokens_per_s": (2.0 + ttft / 1000,)}
        theirs = PeerRecord(tool="perf_analyzer", concurrency=1, figures=figures)
        served.rounds.append(made_round(0.5, peers=(theirs,)))
    by_metric = {peer.metric: peer for peer in made_report(columns).peers}
    assert set(by_metric) == {"ttft", "itl", "tokens_per_s"}
    ttft = by_metric["ttft"]
    assert (ttft.theirs.n, ttft.theirs.value, ttft.ours.n, ttft.ours.value) == (3, 490.0, 3, 500.0)
    assert ttft.agree is False
    assert by_metric["tokens_per_s"].agree is False
    assert by_metric["itl"].agree is None  # one round of it has no range


def test_ranges_that_overlap_agree() -> None:
    columns = made_columns()
    theirs = PeerRecord(tool="perf_analyzer", concurrency=1, figures={"ttft": (520.0, 530.0)})
    columns[2].rounds.append(made_round(0.5, peers=(theirs,)))
    (ttft,) = (peer for peer in made_report(columns).peers if peer.metric == "ttft")
    assert ttft.agree is True


def test_without_any_figure_of_the_baseline_there_are_no_ratios() -> None:
    columns = made_columns()
    columns[0].rounds.clear()
    columns[0].scores = ()
    engine = made_report(columns).subjects[1]
    assert engine.figure("size_on_disk").ratio is not None  # type: ignore[union-attr]
    assert engine.figure("ttft", 1).ratio is None  # type: ignore[union-attr]


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValidationError):
        Range(value=float("nan"), low=0, high=1, n=1, spread="quartiles")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "no report of this format"),
        ('{"format": 99}', "format 99"),
        ('{"format": 1}', "damaged"),
    ],
)
def test_another_file_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_report(path)

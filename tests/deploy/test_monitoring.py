"""Dashboard and rules by themselves; in tests/functional they meet a real server."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import promql_parser
import pytest
import yaml

from ..monitoring import PLACE, RULES, panels, queries, rules

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed (Debian's package prometheus has it)"
)


@pytest.mark.parametrize("place", sorted(queries()))
def test_every_query_is_promql(place: str) -> None:
    promql_parser.parse(queries()[place])


def test_every_alert_says_what_it_means_how_bad_it_is_and_where_to_read_on() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len({rule["alert"] for rule in alerts}) == len(alerts)
    for rule in alerts:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
        assert rule["annotations"]["runbook_url"] == f"docs/operating.md#{rule['alert'].lower()}"


def test_every_alert_is_in_the_page_on_observability() -> None:
    text = (PLACE.parents[1] / "docs" / "observability.md").read_text()
    for rule in rules():
        assert "record" in rule or f"| `{rule['alert']}` |" in text


def test_panels_lie_beside_each_other() -> None:
    taken = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells), panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)


def test_every_panel_has_a_title_and_queries_of_the_chosen_data_source() -> None:
    for panel in panels():
        assert panel["title"]
        if panel["type"] == "row":
            continue
        assert panel["targets"]
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            assert "$instance" in target["expr"]


SERIES = """\
rule_files: [{rules}]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {{series: 'nvlm_server_ready{{instance="a"}}', values: '1x5 0x10'}}
      - {{series: 'nvlm_server_restarts_total{{instance="a",reason="dead"}}', values: '0x5 1x10'}}
      - {{series: 'nvlm_requests_total{{instance="a",route="chat",status="200"}}', values: '0+60x15'}}
      - {{series: 'nvlm_requests_total{{instance="a",route="chat",status="503"}}', values: '0+10x15'}}
      - {{series: 'nvlm_refused_total{{instance="a",reason="overloaded"}}', values: '0+10x15'}}
      - {{series: 'nvlm_broken_streams_total{{instance="b",reason="unavailable"}}', values: '0+10x15'}}
      - {{series: 'nvlm_requests_total{{instance="b",route="chat",status="200"}}', values: '0+60x15'}}
      - {{series: 'nvlm_requests_total{{instance="b",route="chat",status="500"}}', values: '0x15'}}
      - {{series: 'nvlm_server_ready{{instance="b"}}', values: '1x15'}}
      - {{series: 'nvlm_first_token_seconds_bucket{{instance="b",le="2.5"}}', values: '0+8x15'}}
      - {{series: 'nvlm_first_token_seconds_count{{instance="b"}}', values: '0+10x15'}}
    promql_expr_test:
      - expr: count by (alertname) (ALERTS{{alertstate="firing"}})
        eval_time: 12m
        exp_samples:
          - {{labels: '{{alertname="NvlmNotReady"}}', value: 1}}
          - {{labels: '{{alertname="NvlmRestarted"}}', value: 1}}
          - {{labels: '{{alertname="NvlmRefusing"}}', value: 1}}
          - {{labels: '{{alertname="NvlmFailing"}}', value: 1}}
          - {{labels: '{{alertname="NvlmFirstTokenLateFast"}}', value: 1}}
          - {{labels: '{{alertname="NvlmFirstTokenLateSlow"}}', value: 1}}
      - expr: count(ALERTS{{alertstate="firing"}}) or vector(0)
        eval_time: 4m
        exp_samples: [{{labels: '{{}}', value: 2}}]
"""
"""Instance a is not ready, was replaced and refuses; b breaks a sixth of its streams, and a fifth begin late: after 4
minutes the late ones alone are known."""


@needs_promtool
def test_promtool_takes_the_rules_and_they_fire_when_they_should(tmp_path: Path) -> None:
    subprocess.run([str(PROMTOOL), "check", "config", PLACE / "prometheus.yaml"], check=True)
    case = tmp_path / "case.yaml"
    case.write_text(SERIES.format(rules=RULES))
    promtool_agrees(case)


def promtool_agrees(case: Path) -> None:
    done = subprocess.run([str(PROMTOOL), "test", "rules", case], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def finds(
    place: Path,
    query: str,
    found: Mapping[str, float],
    series: Mapping[str, str],
    *,
    interval: str = "1m",
    at: str = "15m",
) -> None:
    """Have promtool say whether a query finds this, by labels, in series and in the alerts that they set off.

    Args:
        place: For promtool's file.
        query: The query.
        found: What it has to find, by labels.
        series: Values in promtool's notation, by names and labels.
        interval: Between two values.
        at: When the query is asked.
    """
    samples = [{"labels": labels, "value": value} for labels, value in found.items()]
    test = {
        "interval": interval,
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": query, "eval_time": at, "exp_samples": samples}],
    }
    case = place / "case.yaml"
    case.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}))
    promtool_agrees(case)


def fired(alert: str) -> str:
    """The query for the instances for which an alert has fired at any time."""
    return f'group by (instance) (last_over_time(ALERTS{{alertname="{alert}",alertstate="firing"}}[1d]))'


@needs_promtool
def test_a_failed_probe_is_not_two_and_three_replacements_are_not_four_however_prometheus_extrapolates(
    tmp_path: Path,
) -> None:
    probes = 'nvlm_deep_probes_total{{instance="{}",result="failed"}}'.format
    series = {probes("one"): "0x20 1x40", probes("two"): "0x20 1x3 2x40"}
    finds(tmp_path, fired("NvlmDeepHealthFailing"), {'{instance="two"}': 1}, series, interval="40s", at="40m")
    restarts = 'nvlm_server_restarts_total{{instance="{}",reason="dead"}}'.format
    series = {restarts("three"): "0x20 1 2 3x40", restarts("four"): "0x20 1 2 3 4x40"}
    finds(tmp_path, fired("NvlmRestartLoop"), {'{instance="four"}': 1}, series, interval="40s", at="40m")


@needs_promtool
def test_shares_of_requests_are_not_diluted_by_probes_scrapes_and_the_page(tmp_path: Path) -> None:
    requests = 'nvlm_requests_total{{instance="a",route="{}",status="{}"}}'.format
    series = {
        requests("chat", 200): "0+45x15",
        requests("chat", 500): "0+1x15",
        requests("chat", 503): "0+4x15",
        requests("health", 200): "0+900x15",
        requests("page", 200): "0+900x15",
        'nvlm_refused_total{instance="a",reason="overloaded"}': "0+4x15",
        'nvlm_broken_streams_total{instance="a",reason="unavailable"}': "0x15",
    }
    for alert in ("NvlmFailing", "NvlmRefusing"):
        finds(tmp_path, fired(alert), {'{instance="a"}': 1}, series)


@needs_promtool
def test_memory_that_grows_for_hours_is_told_from_caches_that_fill(tmp_path: Path) -> None:
    """Caches take 400 MB within 40 minutes; what grows without an end takes 120 MB an hour."""
    memory = 'nvlm_process_resident_memory_bytes{{instance="{}",process="nvlm"}}'.format
    series = {
        memory("fills after its start"): "1000000000+10000000x40 1400000000x560",
        memory("fills after 7 hours"): "1000000000x420 1000000000+10000000x40 1400000000x140",
        memory("fills twice"): "1000000000+10000000x40 1400000000x320 1400000000+10000000x40 1800000000x200",
        memory("was replaced"): "1000000000+10000000x40 1400000000x200 1000000000+10000000x40 1400000000x320",
        memory("grows"): "1000000000+2000000x600",
        memory("fills and grows"): "1000000000+10000000x40 1400000000+2000000x560",
    }
    growing = {'{instance="grows"}': 1, '{instance="fills and grows"}': 1}
    finds(tmp_path, fired("NvlmMemoryGrows"), growing, series, at="10h")


def jobs() -> tuple[str, str]:
    """What Prometheus calls the scraping of our servers: by prometheus.yaml, and by the operator."""
    pod_monitor = PLACE.parent / "kubernetes" / "monitoring"
    (job,) = yaml.safe_load((PLACE / "prometheus.yaml").read_text())["scrape_configs"]
    namespace = yaml.safe_load((pod_monitor / "kustomization.yaml").read_text())["namespace"]
    name = yaml.safe_load((pod_monitor / "podmonitor.yaml").read_text())["metadata"]["name"]
    return job["job_name"], f"{namespace}/{name}"


@needs_promtool
def test_one_server_of_several_that_vanishes_is_told(tmp_path: Path) -> None:
    beside, operator = jobs()
    series = {
        f'up{{instance="well",job="{beside}"}}': "1x15",
        f'up{{instance="gone",job="{beside}"}}': "1x5 0x10",
        f'up{{instance="gone pod",job="{operator}"}}': "1x5 0x10",
        f'up{{instance="slow once",job="{beside}"}}': "1x5 0 1x9",
        'up{instance="another program",job="node"}': "1x5 0x10",
    }
    gone = {'{instance="gone"}': 1, '{instance="gone pod"}': 1}
    finds(tmp_path, fired("NvlmUnreachable"), gone, series)


@needs_promtool
def test_a_serve_that_begins_again_and_again_is_told_from_an_upgrade(tmp_path: Path) -> None:
    began = 'nvlm_start_time_seconds{{instance="{}"}}'.format
    series = {
        began("stays"): "100x40",
        began("upgraded, and back"): "100x5 200x5 300x30",
        began("loops"): "100x5 _x2 200x5 _x2 300x5 _x2 400x20",
    }
    finds(tmp_path, fired("NvlmStartLoop"), {'{instance="loops"}': 1}, series, at="40m")


def target(panel: str, letter: str = "A") -> str:
    """A query of a panel of the dashboard."""
    (found,) = (
        text for place, text in queries().items() if place.startswith(f"panel {panel!r}") and place.endswith(letter)
    )
    return found


@needs_promtool
def test_what_failed_are_answers_and_broken_streams_of_requests_that_somebody_asked(tmp_path: Path) -> None:
    """Of 60 a minute 15 get 500, and 15 break in their stream; a start's 503 of its probes is none of them."""
    requests = 'nvlm_requests_total{{instance="a",route="{}",status="{}"}}'.format
    series = {
        requests("chat", 200): "0+45x15",
        requests("chat", 500): "0+15x15",
        requests("health", 503): "0+60x15",
        requests("page", 200): "0+60x15",
        'nvlm_broken_streams_total{instance="a",reason="stream_error"}': "0+15x15",
    }
    finds(tmp_path, target("Failed"), {"{}": 0.5}, series)
    finds(tmp_path, target("Failed"), {}, {**series, requests("chat", 200): "0x15", requests("chat", 500): "0x15"})


@needs_promtool
def test_the_stages_that_are_stacked_are_means_over_the_same_requests(tmp_path: Path) -> None:
    """Half of the requests have an image, whose vision takes 3 s."""
    series = {
        'nvlm_preprocessing_seconds_count{instance="a"}': "0+60x15",
        'nvlm_vision_seconds_count{instance="a"}': "0+30x15",
        'nvlm_vision_seconds_sum{instance="a"}': "0+90x15",
    }
    finds(tmp_path, target("Where the time goes", "C"), {"{}": 1.5}, series)


@needs_promtool
def test_whole_requests_are_those_that_somebody_asked(tmp_path: Path) -> None:
    """They take from 1 to 3 s; probes, scrapes and the page up to 1 s."""
    seconds = 'nvlm_request_seconds_bucket{{instance="a",route="{}",le="{}"}}'.format
    slow = {seconds("chat", edge): values for edge, values in (("1", "0x15"), ("3", "0+60x15"), ("+Inf", "0+60x15"))}
    quick = {seconds(route, edge): "0+600x15" for route in ("health", "page") for edge in ("1", "3", "+Inf")}
    finds(tmp_path, target("Whole requests"), {"{}": 2.0}, {**slow, **quick})


@needs_promtool
def test_a_full_kv_cache_is_seen_on_both_targets(tmp_path: Path) -> None:
    blocks = (
        'nv_trt_llm_kv_cache_block_metrics{{instance="{}",kv_cache_block_type="fraction",model="tensorrt_llm"}}'.format
    )
    waiting = 'nv_trt_llm_request_metrics{{instance="{}",request_type="waiting",model="tensorrt_llm"}}'.format
    series = {
        'nvlm_kv_blocks{instance="cpu"}': "100x15",
        'nvlm_kv_free_blocks{instance="cpu"}': "1x15",
        'nvlm_kv_waiting_requests{instance="cpu"}': "2x15",
        blocks("gpu"): "0.99x15",
        waiting("gpu"): "2x15",
        blocks("nobody waits"): "0.99x15",
        waiting("nobody waits"): "0x15",
        blocks("room"): "0.5x15",
        waiting("room"): "2x15",
    }
    full = {f'{{instance="{name}"}}': 1 for name in ("cpu", "gpu")}
    finds(tmp_path, fired("NvlmKvCacheFull"), full, series)
    finds(tmp_path, target("KV cache", "A"), {"{}": 0.99}, {blocks("gpu"): "0.99x15"})
    finds(tmp_path, target("Requests in the decoder", "B"), {"{}": 2.0}, {waiting("gpu"): "2x15"})

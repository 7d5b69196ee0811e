"""The metrics of a real server: those that are documented, and those that dashboard and alerts ask for."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import promql_parser
import pytest
import yaml
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from nvlm_trt.host.server import TritonServer
from nvlm_trt.top.figures import Figures
from nvlm_trt.top.source import metrics_url, read_page
from nvlm_trt.top.window import Window

from ..http_json import post_json
from ..monitoring import MADE, ON_GPUS, RULES, SCRAPED, adapted, documented, grouped, queries, selectors

PROMETHEUS = shutil.which("prometheus")


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def work(server: TritonServer, picture: bytes) -> None:
    """Requests of each kind: answered whole and as a stream, given up, refused, probed."""
    url = "data:image/jpeg;base64," + base64.b64encode(picture).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    asked = {"model": "nvlm", "messages": [{"role": "user", "content": parts}], "max_tokens": 4, "ignore_eos": True}
    for stream in (False, True):
        body = json.dumps({**asked, "stream": stream}).encode()
        request = urllib.request.Request(f"http://{server.http_url}/v1/chat/completions", body)
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
    given_up = {"model": "nvlm", "prompt": "x", "max_tokens": 400, "ignore_eos": True, "stream": True}
    request = urllib.request.Request(f"http://{server.http_url}/v1/completions", json.dumps(given_up).encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read(10)
    assert post_json(server.http_url, "models/nvlm/generate", {"text_input": "x", "nonsense": 1}).status == 400
    assert "answers" in fetch(f"http://{server.http_url}/health/deep")


@pytest.fixture(scope="module")
def families(server: TritonServer, jpeg: Callable[[str], bytes]) -> dict[str, Metric]:
    """Metrics by the names of their samples' families, as /metrics shows them after some work."""
    work(server, jpeg("coffee"))
    time.sleep(0.5)  # the decoder tells its figures four times a second
    return {
        family.name: family for family in text_string_to_metric_families(fetch(f"http://{server.http_url}/metrics"))
    }


@pytest.fixture(scope="module")
def labels(families: dict[str, Metric]) -> dict[str, list[dict[str, str]]]:
    """The labels of all samples, by name."""
    found: dict[str, list[dict[str, str]]] = {}
    for family in families.values():
        for sample in family.samples:
            triton = sample.name.startswith("nv_")  # whose counters have no _total, which the parser adds
            name = sample.name.removesuffix("_total") if triton else sample.name
            found.setdefault(name, []).append(sample.labels)
    return found


def test_what_is_documented_is_shown_and_what_is_shown_is_documented(families: dict[str, Metric]) -> None:
    shown = {}
    for family in families.values():
        if family.name.startswith("nvlm_") and not family.name.endswith("_created"):
            name = family.name + ("_total" if family.type == "counter" else "")
            shown[name] = {label for sample in family.samples for label in sample.labels} - {"le"}
    listed = documented()
    assert shown.keys() == listed.keys()
    for name, seen in shown.items():
        assert seen == listed[name] or not families[name.removesuffix("_total")].samples, name


def test_every_query_asks_for_what_is_shown(labels: dict[str, list[dict[str, str]]]) -> None:
    elsewhere = MADE | {place.removeprefix("rule ") for place in queries()}
    labels = labels | ON_GPUS
    for place, text in {**queries(), **adapted()}.items():
        query = promql_parser.parse(text)
        for selector in selectors(query):
            if selector.name in elsewhere:
                continue
            assert selector.name in labels, f"{place}: {selector.name} is not shown"
            for label, operator, value in selector.matchers:
                if label in SCRAPED:
                    continue
                seen = {one[label] for one in labels[selector.name] if label in one}
                assert seen, f"{place}: {selector.name} has no label {label}"
                assert operator != "Equal" or value in seen, f"{place}: {selector.name} has no {label}={value}"
        for names, inside in grouped(query):
            for selector in inside:
                known = {label for one in labels.get(selector.name, []) for label in one} | SCRAPED
                assert names <= known, f"{place}: {selector.name} has no {names - known}"


def test_top_reads_every_figure_of_a_real_server(server: TritonServer, jpeg: Callable[[str], bytes]) -> None:
    window, url = Window(60), metrics_url(server.http_url)
    window.add(read_page(url))
    work(server, jpeg("rocket"))
    time.sleep(0.5)
    window.add(read_page(url))
    figures = Figures.of(window)
    assert not [name for name in Figures.__slots__ if getattr(figures, name) is None]
    assert figures.ready
    assert figures.requests.keys() >= {"200", "400"}
    assert None not in (*figures.first_token, *figures.between_tokens)
    assert figures.memory.keys() >= {"serve", "tritonserver", "nvlm", "vision_encoder", "tensorrt_llm"}


@contextlib.contextmanager
def prometheus(target: str, place: Path) -> Iterator[str]:
    """A Prometheus with the project's rules that looks at a server every second."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rules = yaml.safe_load(RULES.read_text())
    for group in rules["groups"]:
        group["interval"] = "1s"
    (place / "rules.yaml").write_text(yaml.safe_dump(rules))
    scraped = {"job_name": "nvlm", "static_configs": [{"targets": [target]}]}
    config: dict[str, object] = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [scraped],
    }
    config["rule_files"] = ["rules.yaml"]
    (place / "prometheus.yaml").write_text(yaml.safe_dump(config))
    command = [str(PROMETHEUS), f"--config.file={place}/prometheus.yaml", f"--storage.tsdb.path={place}/data"]
    with (place / "log").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}/api/v1"
    finally:
        process.kill()
        process.wait()


def ask(api: str, query: str) -> list[dict]:
    answer = json.loads(fetch(f"{api}/query?query={urllib.parse.quote(query)}"))
    assert answer["status"] == "success", answer
    return list(answer["data"]["result"])


def wait(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if condition():
                return
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (Debian's package prometheus)")
def test_a_real_prometheus_evaluates_every_rule_and_every_query(
    server: TritonServer, jpeg: Callable[[str], bytes], tmp_path: Path
) -> None:
    with prometheus(server.http_url, tmp_path) as api:
        wait(lambda: len(ask(api, "count_over_time(nvlm_server_ready[1m]) > 2")) == 1)
        work(server, jpeg("chelsea"))
        wait(lambda: bool(ask(api, "nvlm:first_token_late:ratio_rate5m")))
        time.sleep(2)
        groups = json.loads(fetch(f"{api}/rules"))["data"]["groups"]
        told = [(rule["name"], rule["health"]) for group in groups for rule in group["rules"]]
        assert len(told) == len([place for place in queries() if place.startswith("rule ")])
        assert {health for _, health in told} == {"ok"}
        empty = {place for place, query in queries(interval="30s").items() if not ask(api, query)}
        alerts = {place for place in empty if place.startswith("rule ")}
        assert empty - alerts == set(), "panels without data"
        assert all(len(ask(api, query)) == 1 for query in adapted().values())
        firing = {one["metric"]["alertname"] for one in ask(api, 'ALERTS{alertstate="firing"}')}
        assert firing <= {"NvlmFirstTokenLateFast", "NvlmFirstTokenLateSlow"}, "a server that is well fires no alert"

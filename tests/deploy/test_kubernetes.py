"""Manifests: valid for the API, hardened, and consistent with each other, the recipes and the command line."""

from __future__ import annotations

import copy
import re
import runpy
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import promql_parser
import pytest
import yaml
from lightkube.models import apps_v1, autoscaling_v2, batch_v1, core_v1, meta_v1, networking_v1, util_intstr

from nvlm_trt.gateway.admission import SPREAD
from nvlm_trt.gateway.door import OPEN
from nvlm_trt.gateway.settings import Limits
from nvlm_trt.recipe import load_recipe

from ..monitoring import adapted, documented, selectors

ROOT = Path(__file__).parents[2]
PLACE = ROOT / "build" / "kubernetes"
KUBECTL = shutil.which("kubectl")
KUSTOMIZATIONS = sorted(PLACE.glob("*/kustomization.yaml"))
MANIFESTS = sorted(
    path for path in PLACE.glob("*/*.yaml") if path.name not in ("kustomization.yaml", "prometheus-adapter.yaml")
)


# ruff: noqa: N815 - fields have the API's own names


class RollingUpdateConfiguration(msgspec.Struct):
    partition: int | None = None
    maxUnavailable: util_intstr.IntOrString | None = None
    maxSurge: util_intstr.IntOrString | None = None


class RolloutStrategy(msgspec.Struct):
    type: str
    rollingUpdateConfiguration: RollingUpdateConfiguration | None = None


class LeaderWorkerTemplate(msgspec.Struct):
    workerTemplate: core_v1.PodTemplateSpec
    leaderTemplate: core_v1.PodTemplateSpec | None = None
    size: int | None = None
    restartPolicy: str | None = None


class LeaderWorkerSetSpec(msgspec.Struct):
    leaderWorkerTemplate: LeaderWorkerTemplate
    replicas: int | None = None
    rolloutStrategy: RolloutStrategy | None = None
    startupPolicy: str | None = None


class LeaderWorkerSet(msgspec.Struct):
    """The part in use of leaderworkerset.x-k8s.io/v1 (kubernetes-sigs/lws, api/leaderworkerset/v1)."""

    apiVersion: str
    kind: str
    metadata: meta_v1.ObjectMeta
    spec: LeaderWorkerSetSpec


class PodMetricsEndpoint(msgspec.Struct):
    port: str
    path: str
    interval: str | None = None


class PodMonitorSpec(msgspec.Struct):
    selector: meta_v1.LabelSelector
    podMetricsEndpoints: list[PodMetricsEndpoint]


class PodMonitor(msgspec.Struct):
    """The part in use of monitoring.coreos.com/v1 (prometheus-operator, Documentation/api-reference/api.md)."""

    apiVersion: str
    kind: str
    metadata: meta_v1.ObjectMeta
    spec: PodMonitorSpec


KINDS: dict[tuple[str, str], type] = {
    ("v1", "Namespace"): core_v1.Namespace,
    ("v1", "PersistentVolumeClaim"): core_v1.PersistentVolumeClaim,
    ("v1", "Service"): core_v1.Service,
    ("apps/v1", "Deployment"): apps_v1.Deployment,
    ("batch/v1", "Job"): batch_v1.Job,
    ("autoscaling/v2", "HorizontalPodAutoscaler"): autoscaling_v2.HorizontalPodAutoscaler,
    ("networking.k8s.io/v1", "NetworkPolicy"): networking_v1.NetworkPolicy,
    ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"): LeaderWorkerSet,
    ("monitoring.coreos.com/v1", "PodMonitor"): PodMonitor,
}


def check(document: dict[str, Any]) -> None:
    """Compare a manifest with the API.

    Raises:
        msgspec.ValidationError: a required field is missing, or one has another type.
        KeyError: the kind is not among those of these manifests.
        AssertionError: the API has no field of a name.
    """
    made = msgspec.convert(document, KINDS[document["apiVersion"], document["kind"]], strict=True)
    assert _without_none(msgspec.to_builtins(made)) == document


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_none(item) for name, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def read(path: str) -> dict:
    return yaml.safe_load((PLACE / path).read_text())


def pods(document: dict) -> list[dict]:
    """Pod specs of a manifest."""
    spec = document.get("spec", {})
    if document["kind"] in ("Deployment", "Job"):
        return [spec["template"]["spec"]]
    if document["kind"] == "LeaderWorkerSet":
        templates = spec["leaderWorkerTemplate"]
        return [templates["leaderTemplate"]["spec"], templates["workerTemplate"]["spec"]]
    return []


def containers(pod: dict) -> list[dict]:
    return [*pod.get("initContainers", ()), *pod["containers"]]


SERVERS = {
    "deployment": pods(read("base/deployment.yaml"))[0],
    "leaderworkerset": pods(read("multinode/leaderworkerset.yaml"))[0],
}


@pytest.fixture(params=SERVERS)
def server(request) -> dict:
    """A pod that serves."""
    return SERVERS[request.param]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_manifest_is_valid_for_the_api(path):
    documents = list(yaml.safe_load_all(path.read_text()))
    assert documents
    for document in documents:
        check(document)


def test_the_check_sees_a_misspelt_a_missing_and_a_wrongly_typed_field():
    deployment = read("base/deployment.yaml")
    for spoil in (
        lambda container: container.update(startupprobe={}),
        lambda container: container.pop("name"),
        lambda container: container.update(args="serve"),
        lambda container: container["startupProbe"].update(periodSeconds="10"),
    ):
        broken = copy.deepcopy(deployment)
        spoil(broken["spec"]["template"]["spec"]["containers"][0])
        with pytest.raises((AssertionError, msgspec.ValidationError)):
            check(broken)


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda path: path.parent.name)
def test_kustomizations_name_what_is_there_and_leave_nothing_out(path):
    kustomization = yaml.safe_load(path.read_text())
    named = {(path.parent / name).resolve() for name in kustomization["resources"]}
    assert all(entry.exists() for entry in named)
    assert named >= {manifest for manifest in MANIFESTS if manifest.parent == path.parent}
    assert kustomization["namespace"] == "nvlm"
    for image in kustomization.get("images", ()):
        assert image["newTag"] not in ("latest", "")


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")
@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda path: path.parent.name)
def test_kubectl_renders_every_kustomization_to_what_is_valid_for_the_api(path):
    shown = subprocess.run([str(KUBECTL), "kustomize", path.parent], capture_output=True, text=True, check=True)
    documents = list(yaml.safe_load_all(shown.stdout))
    assert documents
    for document in documents:
        check(document)
    scaled = any(document["kind"] == "HorizontalPodAutoscaler" for document in documents)
    assert not any(
        scaled and "replicas" in document["spec"] for document in documents if document["kind"] == "Deployment"
    )


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_pods_are_hardened_as_their_namespace_demands(path):
    for pod in pods(yaml.safe_load(path.read_text())):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
    namespace = read("base/namespace.yaml")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_images_are_those_that_the_kustomization_renames(server):
    renamed = {image["name"] for path in KUSTOMIZATIONS for image in yaml.safe_load(path.read_text()).get("images", ())}
    assert {container["image"] for container in containers(server)} <= renamed


def test_probes_ask_the_gateway_for_what_they_are_about(server):
    (container,) = server["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": 8000, "metrics": 8002}
    assert container["startupProbe"]["httpGet"] == {"path": "/health/ready", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/health/ready", "port": "http"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/v2/health/live", "port": "http"}


def test_quantities_are_written_as_kubernetes_reads_them():
    for path in MANIFESTS:
        for pod in pods(yaml.safe_load(path.read_text())):
            for container in containers(pod):
                for amounts in container["resources"].values():
                    assert all(re.fullmatch(r"\d+(m|[MG]i)?", amount) for amount in amounts.values())


def option(container: dict, name: str) -> str:
    args = container["args"]
    return args[args.index(name) + 1]


def test_loading_may_take_as_long_as_the_server_itself_allows(server):
    (container,) = server["containers"]
    probe = container["startupProbe"]
    allowed = probe["failureThreshold"] * probe["periodSeconds"]
    assert allowed > float(option(container, "--start-timeout"))
    deadline = read("base/deployment.yaml")["spec"]["progressDeadlineSeconds"]
    assert deadline > allowed


def test_a_pod_has_time_to_leave(server):
    (container,) = server["containers"]
    sleep = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert server["terminationGracePeriodSeconds"] >= sleep + float(option(container, "--grace")) + 10


def test_servers_and_the_build_use_options_that_the_verbs_have(server):
    build = pods(read("build-job/job.yaml"))[0]
    for container in (*server["containers"], *build["containers"]):
        program, verb, *rest = container["args"]
        assert program == "nvlm-trt"
        options = {word for word in rest if word.startswith("--")}
        shown = subprocess.run(
            [sys.executable, "-m", "nvlm_trt.cli.main", verb, "--help"], capture_output=True, text=True, check=True
        )
        assert options <= set(re.findall(r"--[a-z-]+", shown.stdout))


def test_the_job_builds_what_the_deployment_serves_on_as_many_gpus_as_the_recipe_has_ranks():
    build = pods(read("build-job/job.yaml"))[0]["containers"][0]
    serve = SERVERS["deployment"]["containers"][0]
    recipe = load_recipe(ROOT / build["args"][2])
    assert option(build, "--output") == serve["args"][2] == f"/engines/{recipe.name}"
    for container in (build, serve):
        assert container["resources"]["limits"]["nvidia.com/gpu"] == str(recipe.tp * recipe.pp)
        assert container["resources"]["requests"]["nvidia.com/gpu"] == str(recipe.tp * recipe.pp)
    assert pods(read("build-job/job.yaml"))[0]["nodeSelector"] == SERVERS["deployment"]["nodeSelector"]


def test_engines_are_read_only_where_they_are_served_and_shared_memory_is_large(server):
    (container,) = server["containers"]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert mounts["/engines"]["readOnly"] is True
    volumes = {volume["name"]: volume for volume in server["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} <= volumes.keys()
    assert volumes[mounts["/dev/shm"]["name"]]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}


def test_monitoring_finds_every_server():
    (asked,) = read("monitoring/podmonitor.yaml")["spec"]["selector"]["matchExpressions"]
    assert asked["operator"] == "In"
    templates = {
        "deployment": read("base/deployment.yaml")["spec"]["template"],
        "leaderworkerset": read("multinode/leaderworkerset.yaml")["spec"]["leaderWorkerTemplate"]["leaderTemplate"],
    }
    assert templates.keys() == SERVERS.keys()
    assert {template["metadata"]["labels"][asked["key"]] for template in templates.values()} == set(asked["values"])


def test_monitoring_scrapes_the_gateway_whose_metrics_are_all_and_ask_for_no_key():
    (endpoint,) = read("monitoring/podmonitor.yaml")["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("http", "/metrics")
    assert "/metrics" in OPEN


def test_the_network_policy_opens_the_gateway_to_clients_and_monitoring_and_nothing_else():
    policy = read("base/networkpolicy.yaml")["spec"]
    deployment = read("base/deployment.yaml")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= deployment["template"]["metadata"]["labels"].items()
    assert [[port["port"] for port in rule["ports"]] for rule in policy["ingress"]] == [["http"], ["http"]]
    assert all("from" in rule for rule in policy["ingress"])
    assert (policy["policyTypes"], policy["egress"]) == (["Ingress", "Egress"], [])


def test_services_find_their_pods():
    service, deployment = read("base/service.yaml")["spec"], read("base/deployment.yaml")["spec"]
    assert service["selector"].items() <= deployment["template"]["metadata"]["labels"].items()
    assert deployment["selector"]["matchLabels"].items() <= deployment["template"]["metadata"]["labels"].items()
    workers = read("multinode/leaderworkerset.yaml")["metadata"]["name"]
    selector = read("multinode/service.yaml")["spec"]["selector"]
    assert selector == {
        "leaderworkerset.sigs.k8s.io/name": workers,
        "leaderworkerset.sigs.k8s.io/worker-index": "0",
    }
    for spec in (service, read("multinode/service.yaml")["spec"]):
        assert [port["targetPort"] for port in spec["ports"]] == ["http"]


def test_the_autoscaler_reads_metrics_that_the_adapter_makes():
    scaler = read("autoscaling/hpa.yaml")["spec"]
    rules = read("autoscaling/prometheus-adapter.yaml")["rules"]["custom"]
    assert {metric["pods"]["metric"]["name"] for metric in scaler["metrics"]} == {rule["name"]["as"] for rule in rules}
    assert scaler["scaleTargetRef"]["name"] == read("base/deployment.yaml")["metadata"]["name"]
    for rule in rules:
        assert rule["resources"]["overrides"].keys() == {"namespace", "pod"}
        assert rule["seriesQuery"].partition("{")[0] in rule["metricsQuery"]
        assert rule["metricsQuery"].count("<<.GroupBy>>") == rule["metricsQuery"].count("<<.LabelMatchers>>") >= 1


def test_the_autoscaler_alone_says_how_many_replicas_there_are():
    (patch,) = read("autoscaling/kustomization.yaml")["patches"]
    scaled = read("autoscaling/hpa.yaml")["spec"]["scaleTargetRef"]
    assert patch["target"] == {"kind": scaled["kind"], "name": scaled["name"]}
    assert yaml.safe_load(patch["patch"]) == [{"op": "remove", "path": "/spec/replicas"}]
    assert "replicas" in read("base/deployment.yaml")["spec"], "what is not there cannot be removed"


def test_a_metric_of_the_autoscaler_with_the_name_of_one_of_the_gateway_is_that_one():
    for name, query in adapted().items():
        series = {selector.name for selector in selectors(promql_parser.parse(query))}
        assert series
        assert name not in documented() or series == {name}


def test_replicas_are_added_before_the_gateway_refuses():
    """A queue that the gateway keeps shorter than the target would never ask for a replica."""
    metrics = {
        metric["pods"]["metric"]["name"]: metric["pods"] for metric in read("autoscaling/hpa.yaml")["spec"]["metrics"]
    }
    target = float(metrics["nvlm_expected_wait_seconds"]["target"]["averageValue"])
    assert target < 0.75 * Limits().queue_time / SPREAD


def test_workers_are_reached_where_they_listen():
    spec = read("multinode/leaderworkerset.yaml")["spec"]
    leader, worker = pods(read("multinode/leaderworkerset.yaml"))
    (serve,), (waits,) = leader["containers"], leader["initContainers"]
    (container,) = worker["containers"]
    script = (ROOT / "build" / "docker" / "worker.sh").read_text()
    (port,) = container["ports"]
    (agent,) = [entry["value"] for entry in serve["env"] if entry["name"] == "OMPI_MCA_plm_rsh_agent"]
    assert f"-p {port['containerPort']}" in script
    assert f"-p {port['containerPort']}" in agent
    assert waits["args"][2] == str(port["containerPort"])
    key = re.search(r"-i (\S+)", agent)
    assert key
    assert key[1].rpartition("/")[0] == re.search(r"keys=(\S+)", script)[1]
    assert any(mount["mountPath"] == "/etc/nvlm-ssh" for mount in serve["volumeMounts"])
    assert spec["startupPolicy"] == "LeaderCreated"
    assert spec["leaderWorkerTemplate"]["restartPolicy"] == "RecreateGroupOnPodRestart"


def test_the_leader_waits_for_every_worker():
    wait = runpy.run_path(str(ROOT / "build" / "docker" / "wait_for_workers.py"))["wait"]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert wait(("127.0.0.1", "localhost"), port, 5) == []
    assert wait(("127.0.0.1",), port, 0) == ["127.0.0.1"]

"""Starting a gpu engine: the command of every rank, the nodes, what has to be there, and what a dry run shows."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from nvlm_trt.cli.main import main
from nvlm_trt.errors import EngineError, UserError
from nvlm_trt.gateway.settings import GatewaySettings, Limits
from nvlm_trt.host import launch
from nvlm_trt.host.command import server_command
from nvlm_trt.host.engine import ADDED_ROOM, ServedEngine
from nvlm_trt.host.environment import ImageTriton, find_installation
from nvlm_trt.host.nodes import Nodes
from nvlm_trt.host.ports import Ports
from nvlm_trt.host.server import TritonServer
from nvlm_trt.serving.package import write_repository

PORTS = Ports(8000, 8001, 8002)
MPIRUN = shutil.which("mpirun")


@pytest.fixture
def image(tmp_path):
    """What of NVIDIA's image is looked at."""
    root = tmp_path / "tritonserver"
    for backend in ("tensorrtllm", "tensorrt", "python"):
        (root / "backends" / backend).mkdir(parents=True)
    (root / "bin").mkdir()
    (root / "bin" / "tritonserver").touch()
    return ImageTriton.find(root)


@pytest.fixture
def gpu_engine(engine_dir, gpu_recipe):
    """A gpu engine directory of four ranks without engines."""
    (engine_dir / "recipe.yaml").write_text(yaml.safe_dump(gpu_recipe.model_dump(mode="json")))
    write_repository(engine_dir, engine_dir / "triton_repo", gpu_recipe)
    return engine_dir


def complete(engine_dir, *, world_size=4):
    """Give it engines."""
    engine = engine_dir / "decoder" / "engine"
    engine.mkdir(parents=True)
    for rank in range(4):
        (engine / f"rank{rank}.engine").touch()
    (engine / "config.json").write_text(json.dumps({"pretrained_config": {"mapping": {"world_size": world_size}}}))
    (engine_dir / "vision").mkdir()
    (engine_dir / "vision" / "model.plan").touch()


def ranks_of(image, engine_dir, nodes=None, **more):
    """Mpirun's own words, and those of each rank."""
    options = ServedEngine.open(engine_dir).options(
        "0.0.0.0", PORTS, nodes or Nodes(), start_timeout=None, hang_timeout=15, grace=more.get("grace", 30)
    )
    command = server_command(image, options, backends=Path("/b"), shm_prefix="mine_", admin_key="secret")
    words = [list(group) for group in _split(command, ":")]
    begin = words[0].index("-n")
    return words[0][:begin], [words[0][begin:], *words[1:]]


def _split(words, separator):
    group = []
    for word in words:
        if word == separator:
            yield group
            group = []
        else:
            group.append(word)
    yield group


def test_every_rank_is_one_process_of_the_same_server_on_the_same_repository(image, gpu_engine):
    _, ranks = ranks_of(image, gpu_engine)
    assert len(ranks) == 4
    for rank in ranks:
        assert rank[:3] == ["-n", "1", str(image.binary)]
        assert f"--model-repository={gpu_engine / 'triton_repo'}" in rank
        assert "--disable-auto-complete-config" in rank
        assert "--exit-timeout-secs=30" in rank
        assert "--model-control-mode=explicit" in rank
    prefixes = [word.partition("shm-region-prefix-name=")[2] for rank in ranks for word in rank if "shm-region" in word]
    assert prefixes == ["mine_", "mine_rank1_", "mine_rank2_", "mine_rank3_"]


def test_only_rank_0_has_doors_and_the_others_load_the_decoder_alone(image, gpu_engine):
    _, (first, *others) = ranks_of(image, gpu_engine)
    assert {"--http-address=127.0.0.1", "--http-port=8000", "--grpc-address=0.0.0.0", "--metrics-port=8002"} <= set(
        first
    )
    assert not any(word.startswith("--load-model") for word in first)
    for other in others:
        assert {"--allow-http=false", "--allow-grpc=false", "--allow-metrics=false"} <= set(other)
        assert [word for word in other if word.startswith("--load-model")] == ["--load-model=tensorrt_llm"]
        assert not any("port" in word or "restricted" in word for word in other)


def test_management_needs_the_key_and_bodies_have_the_recipe_s_limit(image, gpu_engine):
    _, (first, *_) = ranks_of(image, gpu_engine)
    restricted = "model-repository,shared-memory,logging,trace:nvlm-admin=secret"
    assert {f"--http-restricted-api={restricted}", f"--grpc-restricted-protocol={restricted}"} <= set(first)
    assert f"--http-max-input-size={2 * 32 * 2**20 * 4 // 3 + 2**24}" in first


def test_what_the_gateway_lets_through_is_within_the_server_s_limit(image, gpu_engine, monkeypatch, capsys):
    recipes = Limits.of(ServedEngine.open(gpu_engine).recipe).max_body
    asked = 2 * recipes
    complete(gpu_engine)
    seen = []
    monkeypatch.setattr("nvlm_trt.host.server.require_launcher", lambda options: seen.append(options))
    TritonServer(gpu_engine, gateway=GatewaySettings(Limits(max_body=asked)), installation=image)
    TritonServer(gpu_engine, with_gateway=False, installation=image)
    assert [options.max_body_bytes for options in seen] == [asked + ADDED_ROOM, recipes]
    _, shown = run(capsys, "serve", gpu_engine, "--dry-run", "--limit", f"max_body={asked}")
    assert f"--http-max-input-size={asked + ADDED_ROOM}" in shown.out


def test_processes_of_a_rank_may_use_all_cores(image, gpu_engine):
    own, _ = ranks_of(image, gpu_engine)
    assert own == ["mpirun", "--allow-run-as-root", "--bind-to", "none"]


def rebuilt(gpu_engine, gpu_recipe, **fields):
    recipe = gpu_recipe.model_copy(update=fields)
    (gpu_engine / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))


def test_ranks_fill_one_node_after_the_other(image, gpu_engine, gpu_recipe):
    rebuilt(gpu_engine, gpu_recipe, gpus_per_node=2)
    own, _ = ranks_of(image, gpu_engine, Nodes(("a", "b")))
    assert own[own.index("--host") + 1] == "a:2,b:2"
    assert own[own.index("--map-by") + 1] == "slot"
    own, _ = ranks_of(image, gpu_engine, Nodes(hostfile=Path("/etc/hosts.mpi")))
    assert own[own.index("--hostfile") + 1] == "/etc/hosts.mpi"
    assert own[own.index("--map-by") + 1] == "slot"


@pytest.mark.parametrize("nodes", [Nodes(("a.x.y", "b.x.y")), Nodes(hostfile=Path("/etc/hosts.mpi"))])
def test_other_nodes_are_reached_by_their_full_names_and_their_ranks_get_the_libraries(
    image, gpu_engine, gpu_recipe, nodes
):
    rebuilt(gpu_engine, gpu_recipe, gpus_per_node=2)
    own, ranks = ranks_of(image, gpu_engine, nodes)
    place = own.index("--mca")
    assert own[place : place + 3] == ["--mca", "orte_keep_fqdn_hostnames", "1"]
    exported = ["-n", "1", "-x", "PATH", "-x", "LD_LIBRARY_PATH", str(image.binary)]
    assert [rank[: len(exported)] for rank in ranks] == [exported] * 4


def script(path, *lines):
    path.write_text("\n".join(("#!/bin/sh", *lines, "")))
    path.chmod(0o755)
    return path


@pytest.mark.skipif(MPIRUN is None, reason="Open MPI is not installed (Debian's package openmpi-bin has it)")
def test_a_real_mpirun_reaches_a_node_by_its_full_name_and_starts_its_ranks_with_our_path(
    image, gpu_engine, gpu_recipe, monkeypatch, tmp_path
):
    """The server is a script that notes where it runs; another one stands for ssh and stays on this machine."""
    rebuilt(gpu_engine, gpu_recipe, gpus_per_node=2)
    script(image.binary, f'echo "${{NODE:-here}} $PATH" > {tmp_path}/rank$OMPI_COMM_WORLD_RANK')
    agent = script(tmp_path / "agent", "node=$1", "shift", 'NODE=$node PATH=/usr/bin:/bin exec sh -c "$*"')
    monkeypatch.setenv("OMPI_MCA_plm_rsh_agent", str(agent))
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{tmp_path}")
    own, ranks = ranks_of(image, gpu_engine, Nodes(("localhost", "nvlm-0-1.nvlm.models")))
    command = [*own, *ranks[0], *(word for rank in ranks[1:] for word in (":", *rank))]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    notes = [(tmp_path / f"rank{rank}").read_text().split() for rank in range(4)]
    assert [node for node, _ in notes] == ["here", "here", *["nvlm-0-1.nvlm.models"] * 2]
    assert all(path.endswith(f":{tmp_path}") for _, path in notes)


def test_ranks_that_cannot_be_dealt_out_evenly_are_refused(image, gpu_engine):
    with pytest.raises(EngineError, match="4 ranks, 3 nodes"):
        ranks_of(image, gpu_engine, Nodes(("a", "b", "c")))


def test_nodes_of_another_size_than_the_engines_were_built_for_are_refused(image, gpu_engine):
    with pytest.raises(EngineError, match=r"seen: 2 ranks a node; expected: 8, .* again with gpus_per_node: 2"):
        ranks_of(image, gpu_engine, Nodes(("a", "b")))


def test_a_decoder_of_one_rank_needs_no_mpirun(image, gpu_engine, gpu_recipe):
    rebuilt(gpu_engine, gpu_recipe, tp=1)
    own = ServedEngine.open(gpu_engine).options("h", PORTS, Nodes(), start_timeout=None, hang_timeout=1, grace=1)
    command = server_command(image, own, backends=Path("/b"), shm_prefix="m_", admin_key="k")
    assert command[0] == str(image.binary)
    assert ":" not in command


def group(**variables):
    return {"LWS_LEADER_ADDRESS": "nvlm-0.nvlm.models", "LWS_GROUP_SIZE": "3", "LWS_WORKER_INDEX": "0", **variables}


def test_the_pods_of_a_leaderworkerset_are_the_nodes():
    nodes = Nodes.of_group(group())
    assert nodes.hosts == ("nvlm-0.nvlm.models", "nvlm-0-1.nvlm.models", "nvlm-0-2.nvlm.models")
    assert nodes.are_several
    assert not Nodes.of_group({}).are_several
    assert not Nodes.of_group(group(LWS_GROUP_SIZE="1")).are_several


@pytest.mark.parametrize("variables", [{"LWS_WORKER_INDEX": "1"}, {"LWS_GROUP_SIZE": ""}, {"LWS_GROUP_SIZE": "two"}])
def test_a_worker_or_half_a_group_does_not_serve(variables):
    with pytest.raises(EngineError):
        Nodes.of_group(group(**variables))


def test_missing_engines_are_all_named(gpu_engine):
    with pytest.raises(EngineError) as error:
        ServedEngine.open(gpu_engine).check_engines()
    for name in ("vision/model.plan", "decoder/engine/config.json", "decoder/engine/rank3.engine"):
        assert name in str(error.value)
    complete(gpu_engine)
    ServedEngine.open(gpu_engine).check_engines()


def test_engines_of_another_number_of_ranks_are_refused(gpu_engine):
    complete(gpu_engine, world_size=8)
    with pytest.raises(EngineError, match=r"seen: 8; expected: tp 4 \* pp 1"):
        ServedEngine.open(gpu_engine).check_engines()
    (gpu_engine / "decoder" / "engine" / "config.json").write_text("{}")
    with pytest.raises(EngineError, match="not TensorRT-LLM's"):
        ServedEngine.open(gpu_engine).check_engines()


@pytest.mark.parametrize("lacking", ["bin/tritonserver", "backends/tensorrtllm", "backends/tensorrt"])
def test_a_machine_without_the_image_says_what_is_missing_and_which_image_has_it(image, lacking):
    place = image.root / lacking
    place.rename(place.with_name("elsewhere"))
    with pytest.raises(EngineError, match=r"trtllm-python-py3") as error:
        ImageTriton.find(image.root)
    assert lacking in str(error.value)


def test_the_image_s_server_gets_this_python_and_the_image_s_libraries(image, monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", "/image/lib")
    monkeypatch.setenv("PYTHONHOME", "/elsewhere")
    made = image.environment({"X": "1"})
    assert made["PATH"].split(":")[0] == str(Path(sys.executable).parent)
    assert (made["LD_LIBRARY_PATH"], made["X"]) == ("/image/lib", "1")
    assert "PYTHONHOME" not in made
    assert image.prepare_backends(Path("/unused")) == image.root / "backends"


def test_each_target_has_its_own_server():
    assert find_installation("cpu").binary.is_file()
    if not Path("/opt/tritonserver/backends/tensorrtllm").exists():
        with pytest.raises(EngineError, match="gpu engines"):
            find_installation("gpu")


def test_several_ranks_need_mpirun(image, gpu_engine, monkeypatch):
    complete(gpu_engine)
    monkeypatch.setenv("PATH", str(gpu_engine))
    with pytest.raises(EngineError, match="mpirun"):
        TritonServer(gpu_engine, installation=image)


def run(capsys, *words):
    code = main([str(word) for word in words])
    return code, capsys.readouterr()


def test_a_dry_run_prints_commands_for_a_shell_and_starts_nothing(gpu_engine, capsys):
    code, shown = run(capsys, "serve", gpu_engine, "--dry-run", "--http-port", 9000)
    assert code == 0
    change, server, *loads = shown.out.splitlines()
    assert shlex.split(change) == ["cd", str(gpu_engine)]
    words = shlex.split(server)
    assert words[0] == "mpirun"
    assert words.count("/opt/tritonserver/bin/tritonserver") == 4
    assert [line.rpartition("/models/")[2] for line in loads] == [
        "vision_encoder/load",
        "ensemble/load",
        "selftest/load",
        "nvlm/load",
    ]
    assert "--http-port=HTTP_PORT" in words, "9000 is the gateway's"
    assert all("127.0.0.1:HTTP_PORT/" in line and "nvlm-admin: ADMIN_KEY" in line for line in loads)
    assert "gateway on 127.0.0.1:9000" in shown.err
    _, bare = run(capsys, "serve", gpu_engine, "--dry-run", "--http-port", 9000, "--no-gateway")
    assert "--http-port=9000 " in bare.out
    assert "127.0.0.1:9000/v2" in bare.out


def test_a_hostfile_has_to_be_there_and_to_have_ranks_to_place(gpu_engine, gpu_recipe, capsys, tmp_path):
    hosts = tmp_path / "hosts"
    code, shown = run(capsys, "serve", gpu_engine, "--dry-run", "--hostfile", hosts)
    assert (code, f"no such hostfile; seen: {hosts}" in shown.err) == (2, True)
    hosts.write_text("a slots=8\n")
    code, shown = run(capsys, "serve", gpu_engine, "--dry-run", "--hostfile", hosts)
    assert (code, f"--hostfile {hosts}" in shown.out) == (0, True)
    rebuilt(gpu_engine, gpu_recipe, tp=1)
    code, shown = run(capsys, "serve", gpu_engine, "--dry-run", "--hostfile", hosts)
    assert (code, "this engine has one" in shown.err) == (2, True)


def test_nodes_of_a_hostfile_have_as_many_slots_as_the_engines_were_built_for(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("# two\n\na slots=2\nroot@b.x.y  slots = 2 max-slots=2 // the last\n")
    assert Nodes.of_file(hosts, 4, 2) == Nodes(hostfile=hosts)


@pytest.mark.parametrize(
    "node", ["b", "b slots=4", "b slots=20", "b max_slots=2", "b max-slots=2", "b # slots=2", "slots=2"]
)
def test_a_node_of_a_hostfile_of_another_size_is_refused(node, tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text(f"a slots=2\n{node}\n")
    with pytest.raises(UserError, match=r"expected: HOST slots=2, the recipe's gpus_per_node") as error:
        Nodes.of_file(hosts, 4, 2)
    assert str(error.value.seen) == node.partition(" #")[0]


def test_a_hostfile_with_too_few_nodes_is_refused(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("a slots=2\n")
    with pytest.raises(UserError, match="seen: 1 nodes of 2 slots; expected: 4 slots or more"):
        Nodes.of_file(hosts, 4, 2)


def test_a_dry_run_in_json_is_the_same(gpu_engine, capsys):
    code, shown = run(capsys, "serve", gpu_engine, "--dry-run", "--json")
    facts = json.loads(shown.out)
    assert code == 0
    assert (facts["target"], facts["world_size"], facts["directory"]) == ("gpu", 4, str(gpu_engine))
    assert facts["command"][0] == "mpirun"
    assert facts["load_order"][0] == "vision_encoder"


def test_a_dry_run_of_the_cpu_target_is_one_process(engine_dir, recipe, capsys):
    (engine_dir / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    write_repository(engine_dir, engine_dir / "triton_repo", recipe)
    code, shown = run(capsys, "serve", engine_dir, "--dry-run")
    _, server = shown.out.splitlines()
    assert code == 0
    assert "--model-control-mode=explicit '--load-model=*'" in server
    assert "mpirun" not in server
    assert "--http-max-input-size" not in server


def test_serving_a_gpu_engine_without_engines_is_the_user_s_mistake(gpu_engine, capsys):
    code, shown = run(capsys, "serve", gpu_engine)
    assert code == 2
    assert "vision/model.plan" in shown.err


def test_the_guard_ends_processes_of_other_groups_when_the_server_is_gone(tmp_path):
    note = tmp_path / "rank"
    (tmp_path / "rank.py").write_text(
        "import os, sys, time\n"
        "os.setpgid(0, 0)  # as OpenMPI's mpirun does for every rank\n"
        "open(sys.argv[1], 'w').write(str(os.getpid()))\n"
        "time.sleep(60)\n"
    )
    (tmp_path / "mpirun.py").write_text(
        "import subprocess, sys, time\nsubprocess.Popen([sys.executable, *sys.argv[1:]])\ntime.sleep(60)\n"
    )
    server = [sys.executable, str(tmp_path / "mpirun.py"), str(tmp_path / "rank.py"), str(note)]
    command = [sys.executable, "-I", launch.__file__, "0", str(os.getpid()), *server]
    process = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 10
    while not (note.exists() and note.read_text().strip()) and time.monotonic() < deadline:
        time.sleep(0.02)
    orphan = psutil.Process(int(note.read_text()))
    assert os.getpgid(orphan.pid) == orphan.pid
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not psutil.wait_procs([orphan], timeout=10)[1]

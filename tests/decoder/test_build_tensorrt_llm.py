"""trtllm-build is found, run, watched and ended; a program that stands in for it is run as a real process."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from nvlm_trt.decoder import build_tensorrt_llm, trtllm_build_watch
from nvlm_trt.decoder.build_tensorrt_llm import build_decoder_tensorrt_llm
from nvlm_trt.decoder.precision import BF16
from nvlm_trt.decoder.trtllm_build_command import EngineSettings
from nvlm_trt.decoder.trtllm_build_failure import build_failure
from nvlm_trt.decoder.trtllm_config import TrtllmConfig
from nvlm_trt.errors import BuildError, CheckpointError, EngineError
from nvlm_trt.model.synthetic import like_72b

SETTINGS = EngineSettings(
    max_batch_size=4,
    max_seq_len=4096,
    max_num_tokens=8192,
    max_multimodal_len=4096,
    gemm_plugin="auto",
    paged_context_fmha=True,
    fp8_context_fmha=False,
    tokens_per_block=32,
    multiple_profiles=False,
)
RANKS, RANK_BYTES = 2, 1000

BEGIN = """
import json, os, pathlib, subprocess, sys, time
words = sys.argv[1:]
said = dict(zip(words[::2], words[1::2]))
out, checkpoint = pathlib.Path(said["--output_dir"]), pathlib.Path(said["--checkpoint_dir"])
cache = pathlib.Path(said.get("--input_timing_cache", "/nonexistent"))
print("times of", cache.read_text() if cache.exists() else "nothing", flush=True)
"""
SUCCEED = """
config = json.loads((checkpoint / "config.json").read_text())
for rank in range(config["mapping"]["world_size"]):
    print("[TRT-LLM] [I] Build phase peak memory: 1907.35 MB, children: 0.00 MB")
    print(f"[TRT-LLM] [I] Serializing engine to {out}/rank{rank}.engine...")
    (out / f"rank{rank}.engine").write_bytes(b"x" * 1100)
build = {
    "max_batch_size": int(said["--max_batch_size"]),
    "max_seq_len": int(said["--max_seq_len"]),
    "max_num_tokens": int(said["--max_num_tokens"]),
    "max_beam_width": 1,
    "max_prompt_embedding_table_size": int(said["--max_multimodal_len"]),
    "kv_cache_type": said["--kv_cache_type"].upper(),
    "plugin_config": {
        "tokens_per_block": int(said["--tokens_per_block"]),
        "gpt_attention_plugin": said["--gpt_attention_plugin"],
        "gemm_plugin": said["--gemm_plugin"],
        "nccl_plugin": config["dtype"],
    }
    | {
        name: said["--" + name] == "enable"
        for name in (
            "context_fmha",
            "remove_input_padding",
            "use_paged_context_fmha",
            "use_fp8_context_fmha",
            "multiple_profiles",
        )
    },
}
written = {"version": "1.2.1", "pretrained_config": config, "build_config": build}
(out / "config.json").write_text(json.dumps(written))
pathlib.Path(said["--output_timing_cache"]).write_text("this build")
"""
FAIL = """
print("[TensorRT-LLM] TensorRT-LLM version: 1.2.1")
print("[11/24/2026-10:00:00] [TRT] [E] Error Code 9: no implementation for node x", file=sys.stderr)
print("RuntimeError: Engine building failed, please check the error log.")
sys.exit(3)
"""
HANG = """
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
(out / "rank0.engine").write_bytes(b"x" * 400)
(out / "pids").write_text(f"{os.getpid()} {child.pid}")
time.sleep(600)
"""
KILLED = "os.kill(os.getpid(), 9)\n"


class Build:
    """A checkpoint of two ranks, and the call that builds it with a program of the test's own."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bin, self.checkpoint, self.out, self.work = (root / name for name in ("bin", "checkpoint", "out", "work"))
        self.timing_cache = root / "caches" / "decoder.cache"
        self.done: list[tuple[int, int]] = []
        self.lines: list[str] = []
        self.bin.mkdir()
        self.checkpoint.mkdir()
        for rank in range(RANKS):
            (self.checkpoint / f"rank{rank}.safetensors").write_bytes(b"w" * RANK_BYTES)
        TrtllmConfig.of(like_72b(1).config.decoder, BF16, tp=RANKS, pp=1).write(self.checkpoint)
        monkeypatch.setenv("PATH", str(self.bin))

    def stand_in(self, *steps: str) -> None:
        path = self.bin / "trtllm-build"
        path.write_text(f"#!{sys.executable} -IS\n" + BEGIN + "".join(steps), encoding="utf-8")
        path.chmod(0o755)

    def run(
        self,
        *,
        workers: int = 1,
        progress: Callable[[int, int], None] | None = None,
        table_dtype: str | None = "bfloat16",
    ) -> None:
        build_decoder_tensorrt_llm(
            self.checkpoint,
            self.out,
            settings=SETTINGS,
            workers=workers,
            timing_cache=self.timing_cache,
            work_dir=self.work,
            progress=progress or (lambda done, total: self.done.append((done, total))),
            log=self.lines.append,
            table_dtype=table_dtype,
        )


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    return Build(tmp_path, monkeypatch)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_prompt_table_of_another_dtype_is_refused_before_anything_is_built(build: Build, dtype: str) -> None:
    build.stand_in(SUCCEED)
    with pytest.raises(EngineError, match=f"vision {dtype}, decoder bfloat16") as refused:
        build.run(table_dtype=dtype)
    assert "expected: bfloat16 from both" in str(refused.value)
    assert not build.out.exists()
    assert build.lines == []


def test_a_decoder_without_a_vision_engine_beside_it_is_built(build: Build) -> None:
    build.stand_in(SUCCEED)
    build.run(table_dtype=None)
    assert (build.out / "rank1.engine").is_file()


def test_a_build_leaves_the_engines_and_its_log(build: Build) -> None:
    build.stand_in("print('all is well')\n", SUCCEED)
    build.run()
    assert {path.name for path in build.out.iterdir()} == {"rank0.engine", "rank1.engine", "config.json", "build.log"}
    assert "all is well" in (build.out / "build.log").read_text(encoding="utf-8")
    assert build.done[-1] == (RANKS * RANK_BYTES, RANKS * RANK_BYTES)
    assert f"--checkpoint_dir {build.checkpoint}" in build.lines[0]
    assert build.lines[1:] == [
        f"the engine of rank {rank} is built, with 2.0 GB of host memory" for rank in range(RANKS)
    ]


def test_a_variable_does_not_overrule_the_order(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUILDER_FORCE_NUM_PROFILES", "1")
    build.stand_in("print('profiles', os.environ.get('BUILDER_FORCE_NUM_PROFILES'))\n", SUCCEED)
    build.run()
    assert "profiles None" in (build.out / "build.log").read_text(encoding="utf-8")


def test_without_trtllm_build_the_image_that_has_it_is_named(build: Build) -> None:
    with pytest.raises(EngineError, match=r"tritonserver:26\.04-trtllm-python-py3"):
        build.run()
    assert not build.out.exists()


@pytest.mark.parametrize("version", ["0.21.0", "1.1.0", "1.3.0rc3", "1.3.0"])
def test_another_release_is_refused_before_it_runs(version: str, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_tensorrt_llm, "installed", lambda _name: version)
    build.stand_in(SUCCEED)
    with pytest.raises(EngineError, match=rf"seen: {version}; expected: 1\.2 "):
        build.run()
    assert not build.out.exists()


def test_the_pinned_release_is_run(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_tensorrt_llm, "installed", {"tensorrt_llm": "1.2.1"}.get)
    build.stand_in(SUCCEED)
    build.run()
    assert (build.out / "rank1.engine").is_file()


def test_a_checkpoint_that_lacks_a_rank_is_not_built(build: Build) -> None:
    build.stand_in(SUCCEED)
    (build.checkpoint / "rank1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"rank1\.safetensors"):
        build.run()


def test_a_failure_is_told_with_the_last_errors_and_the_log(build: Build) -> None:
    build.stand_in(FAIL)
    with pytest.raises(BuildError) as caught:
        build.run()
    said = str(caught.value)
    assert "ended with code 3" in said
    assert "no implementation for node x" in said
    assert "Engine building failed" in said
    assert "version: 1.2.1" not in said
    assert str(build.work / "build.log") in said
    assert (build.work / "build.log").is_file()
    assert not build.timing_cache.exists()


def test_a_build_that_the_kernel_ends_needs_more_host_memory(build: Build) -> None:
    build.stand_in(KILLED)
    with pytest.raises(BuildError, match=r"(?s)signal 9 \(Killed\).*decoder_engine\.workers 2"):
        build.run(workers=4)


def test_what_was_not_asked_for_is_no_engine(build: Build) -> None:
    build.stand_in('said["--max_batch_size"] = "5"\n', SUCCEED)
    with pytest.raises(BuildError, match="max_batch_size is 5, expected 4"):
        build.run()
    assert not (build.out / "build.log").exists()


def test_host_memory_of_a_silent_build_is_told(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trtllm_build_watch, "QUIET_SECONDS", 0.0)
    build.stand_in(HANG)

    def give_up(_done: int, _total: int) -> None:
        if len(build.lines) > 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build.run(progress=give_up)
    held = re.search(r"holds (\d+\.\d) GB of host memory", build.lines[1])
    assert held is not None
    assert float(held[1]) < 1


def test_a_build_that_is_given_up_ends_with_all_its_processes(build: Build) -> None:
    build.stand_in(HANG)
    pids: list[int] = []

    def give_up(done: int, total: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            pids.extend(map(int, (build.out / "pids").read_text(encoding="utf-8").split()))
        if pids:
            assert (done, total) == (round(0.2 * 400), RANKS * RANK_BYTES)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build.run(progress=give_up)
    assert len(pids) == 2
    assert_ended(pids)


def test_a_build_ends_with_the_process_that_started_it(build: Build) -> None:
    build.stand_in(HANG)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            build.run(progress=lambda _done, _total: None)
        os._exit(0)
    pids: list[int] = []
    while len(pids) < 2:
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(0.02)
        with contextlib.suppress(FileNotFoundError):
            pids = [int(word) for word in (build.out / "pids").read_text(encoding="utf-8").split()]
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert_ended(pids)


def assert_ended(pids: list[int]) -> None:
    """Wait for the processes, which are ended but not ours to reap."""
    processes = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            processes.append(psutil.Process(pid))
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert [process.pid for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def test_times_of_kernels_outlive_a_build_that_succeeds(build: Build) -> None:
    build.timing_cache.parent.mkdir()
    build.timing_cache.write_text("earlier builds", encoding="utf-8")
    build.stand_in(SUCCEED)
    build.run()
    assert "times of earlier builds" in (build.out / "build.log").read_text(encoding="utf-8")
    assert build.timing_cache.read_text(encoding="utf-8") == "this build"
    assert [path.name for path in build.timing_cache.parent.iterdir()] == ["decoder.cache"]


def test_times_of_a_build_that_failed_are_not_read_again(build: Build) -> None:
    build.work.mkdir()
    (build.work / "timing.cache").write_text("a build that failed", encoding="utf-8")
    build.stand_in(SUCCEED)
    build.run()
    assert "times of nothing" in (build.out / "build.log").read_text(encoding="utf-8")


@pytest.mark.parametrize(("workers", "same"), [(1, True), (2, False)])
def test_only_ranks_built_one_by_one_read_the_file_that_they_write(build: Build, workers: int, same: bool) -> None:
    build.timing_cache.parent.mkdir()
    build.timing_cache.write_text("earlier builds", encoding="utf-8")
    build.stand_in("print(json.dumps(said))\n", SUCCEED)
    build.run(workers=workers)
    lines = (build.out / "build.log").read_text(encoding="utf-8").splitlines()
    (said,) = (json.loads(line) for line in lines if line.startswith("{"))
    assert (said["--input_timing_cache"] == said["--output_timing_cache"]) is same
    assert said["--workers"] == str(workers)


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("[TRT] [E] Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed.", "remove shared.cache"),
        ("[TRT] [E] Error Code 1: Version tag does not match", "remove shared.cache"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "max_num_tokens"),
        (
            "[TRT] [E] [virtualMemoryBuffer.cpp::resizePhysical::151] Error Code 2: OutOfMemory "
            "(Requested size was 16654532608 bytes.)",
            "max_num_tokens",
        ),
        ("[TRT] [E] Error Code 10: Internal Error (Could not find any implementation for node x.)", "max_num_tokens"),
        ("trtllm-build: error: unrecognized arguments: --use_fused_mlp enable", "the pinned image"),
        ("trtllm-build: error: argument --gemm_plugin: invalid choice: 'auto'", "the pinned image"),
        ("RuntimeError: SmoothQuant is not supported on SM>=100.", "bf16 and fp8"),
        ("RuntimeError: [TensorRT-LLM][ERROR] NCCL error 'unhandled system error'", "NCCL_DEBUG=WARN"),
        ("MemoryError", "decoder_engine.workers 4"),
        ("[TRT] [E] 1: [defaultAllocator] Error Code 1: Cuda Runtime (out of memory)", "max_num_tokens"),
        ("RuntimeError: No CUDA GPUs are available", "--gpus all"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("concurrent.futures.process.BrokenProcessPool: A process in the process pool", "decoder_engine.workers 4"),
    ],
)
def test_known_causes_come_with_advice(line: str, advice: str, tmp_path: Path) -> None:
    log = tmp_path / "build.log"
    log.write_text(f"begin\n{line}\nend\n", encoding="utf-8")
    said = str(build_failure(1, log, workers=8, timing_cache=Path("shared.cache")))
    assert advice in said
    assert line in said
    assert "begin" not in said


@pytest.mark.parametrize(
    ("code", "last"),
    [(-9, "[TRT] [I] Compiler backend is used"), (1, "BrokenProcessPool: A process in the process pool")],
)
def test_a_kernel_that_did_not_fit_the_gpu_does_not_explain_a_kill(code: int, last: str, tmp_path: Path) -> None:
    # Logged for each kernel that is tried and asks for too much; the build goes on with another one.
    tried = "[TRT] [E] 2: [virtualMemoryBuffer.cpp::resizePhysical::140] Error Code 2: OutOfMemory (no further ...)"
    log = tmp_path / "build.log"
    log.write_text(f"{tried}\n{last}\n", encoding="utf-8")
    said = str(build_failure(code, log, workers=2, timing_cache=Path("shared.cache")))
    assert "decoder_engine.workers 1" in said
    assert "max_num_tokens" not in said


def test_a_single_rank_that_does_not_fit_has_no_fewer_workers(tmp_path: Path) -> None:
    log = tmp_path / "build.log"
    log.write_text("MemoryError\n", encoding="utf-8")
    said = str(build_failure(1, log, workers=1, timing_cache=Path("shared.cache")))
    assert "3 times the bytes of its weights" in said
    assert "decoder_engine.workers" not in said


def test_an_unknown_cause_has_the_end_of_the_log_and_no_advice(tmp_path: Path) -> None:
    log = tmp_path / "build.log"
    log.write_text("".join(f"line {number}\n" for number in range(40)), encoding="utf-8")
    said = str(build_failure(1, log, workers=1, timing_cache=Path("shared.cache")))
    assert "line 39" in said
    assert "line 34" not in said
    assert "memory" not in said

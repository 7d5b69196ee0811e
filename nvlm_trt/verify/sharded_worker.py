"""The processes of a sharded run: ``python -m nvlm_trt.verify.sharded_worker JOB_DIR``.

This process imports torch once, forks one process per rank, and watches them: it ends all of them as soon as one
fails, when the time is up, or when its standard input closes, which it does when whoever started it is gone.

A job directory holds job.json and prompts.safetensors (`ids.N`, and `table.N` where there is one); the run leaves
logits.safetensors (`logits.N`, float32), or a fault{rank}.txt for every rank that failed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from nvlm_trt.decoder.trtllm_config import TrtllmConfig
from nvlm_trt.decoder.trtllm_layout import Rank
from nvlm_trt.emulation.arithmetic import COMPUTE
from nvlm_trt.emulation.rank import RankDecoder

JOB_NAME = "job.json"
PROMPTS_NAME = "prompts.safetensors"
LOGITS_NAME = "logits.safetensors"


@dataclass(frozen=True, slots=True)
class Job:
    """What one sharded run does.

    Attributes:
        checkpoint: The TensorRT-LLM checkpoint directory.
        prompts: How many prompts there are.
        timeout: Seconds after which every rank is ended.
    """

    checkpoint: str
    prompts: int
    timeout: float

    def write(self, directory: Path) -> None:
        """Leave it in the job directory."""
        (directory / JOB_NAME).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> Job:
        """Take it from the job directory."""
        return cls(**json.loads((directory / JOB_NAME).read_text(encoding="utf-8")))


class GlooCollectives:
    """The ranks' talk over torch.distributed; the process group must stand."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        stages = [range(stage * rank.tp, (stage + 1) * rank.tp) for stage in range(rank.pp)]
        self._tp_group = [dist.new_group(list(members)) for members in stages][rank.stage]

    def all_reduce(self, partial: torch.Tensor) -> torch.Tensor:
        """The sum over the tp ranks of this stage."""
        dist.all_reduce(partial, group=self._tp_group)
        return partial

    def all_gather(self, part: torch.Tensor) -> torch.Tensor:
        """The parts of the tp ranks side by side on the last dimension."""
        parts = [torch.empty_like(part) for _ in range(self._rank.tp)]
        dist.all_gather(parts, part, group=self._tp_group)
        return torch.cat(parts, dim=-1)

    def receive(self, shape: tuple[int, ...]) -> torch.Tensor:
        """The hidden states from the rank before in the pipeline, float64."""
        hidden = torch.empty(shape, dtype=COMPUTE)
        dist.recv(hidden, src=self._rank.index - self._rank.tp)
        return hidden

    def send(self, hidden: torch.Tensor) -> None:
        """Hand the hidden states to the next rank in the pipeline."""
        dist.send(hidden.contiguous(), dst=self._rank.index + self._rank.tp)


def run_rank(directory: Path, index: int) -> None:
    """Run every prompt of a job on one rank; the first rank of the last stage writes the logits."""
    job = Job.read(directory)
    config = TrtllmConfig.read(Path(job.checkpoint))
    rank = Rank(config.tp, config.pp, index)
    os.environ["GLOO_SOCKET_IFNAME"] = _loopback_interface()
    dist.init_process_group(
        "gloo",
        init_method=f"file://{directory / 'store'}",
        rank=index,
        world_size=config.world_size,
        timeout=timedelta(seconds=job.timeout),
    )
    try:
        decoder = RankDecoder(Path(job.checkpoint), index, GlooCollectives(rank))
        prompts = load_file(directory / PROMPTS_NAME)
        with torch.inference_mode():
            outputs = [
                decoder.logits(prompts[f"ids.{number}"], prompts.get(f"table.{number}"))
                for number in range(job.prompts)
            ]
        dist.barrier()
    finally:
        dist.destroy_process_group()
    if rank.is_last_stage and rank.tp_rank == 0:
        logits = [each.float().contiguous() for each in outputs if each is not None]
        save_file({f"logits.{number}": each for number, each in enumerate(logits)}, directory / LOGITS_NAME)


def _loopback_interface() -> str:
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))


def _run_rank_or_tell(directory: Path, index: int) -> None:
    torch.set_num_threads(1)
    try:
        run_rank(directory, index)
    except Exception as error:
        text = f"rank {index}: {type(error).__name__}: {error}"
        (directory / f"fault{index}.txt").write_text(text, encoding="utf-8")
        raise SystemExit(1) from None


def _watch(ranks: Sequence[ForkProcess], deadline: float) -> bool:
    """Whether every rank ended well before the deadline, and while standard input stayed open."""
    parent = sys.stdin.fileno()
    running = {process.sentinel: process for process in ranks}
    while running:
        left = deadline - time.monotonic()
        ready = wait([*running, parent], timeout=max(left, 0.0))
        if not ready or parent in ready:
            return False
        for process in [running.pop(each) for each in ready if isinstance(each, int)]:
            process.join()
            if process.exitcode:
                return False
    return True


def main(directory: Path) -> int:
    """Fork the ranks of a job and watch them; returns the exit code."""
    job = Job.read(directory)
    deadline = time.monotonic() + job.timeout
    context = multiprocessing.get_context("fork")
    world_size = TrtllmConfig.read(Path(job.checkpoint)).world_size
    ranks = [context.Process(target=_run_rank_or_tell, args=(directory, index)) for index in range(world_size)]
    for process in ranks:
        process.start()
    try:
        return 0 if _watch(ranks, deadline) else 1
    finally:
        for process in ranks:
            process.kill()
            process.join()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

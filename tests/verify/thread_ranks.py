"""The ranks of one stage as threads of this process: what the collectives of the gloo processes do, without them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Barrier, BrokenBarrierError, Thread

import numpy as np
import torch

from nvlm_trt.decoder.trtllm_config import TrtllmConfig
from nvlm_trt.verify.sharded import Prompt
from nvlm_trt.verify.sharded_model import RankDecoder


class Meeting:
    """Where the threads of all ranks meet: what they bring is handed to each of them in the order of ranks."""

    def __init__(self, ranks: int) -> None:
        self._barrier = Barrier(ranks, timeout=60)
        self._brought: list[torch.Tensor | None] = [None] * ranks

    def exchange(self, index: int, tensor: torch.Tensor) -> list[torch.Tensor]:
        self._brought[index] = tensor
        self._barrier.wait()
        brought = [each for each in self._brought if each is not None]
        self._barrier.wait()
        return brought

    def leave(self) -> None:
        self._barrier.abort()


class ThreadCollectives:
    """One rank's line to the others; there is one stage."""

    def __init__(self, meeting: Meeting, index: int) -> None:
        self._meeting, self._index = meeting, index

    def all_reduce(self, partial: torch.Tensor) -> torch.Tensor:
        return torch.stack(self._meeting.exchange(self._index, partial)).sum(dim=0)

    def all_gather(self, part: torch.Tensor) -> torch.Tensor:
        return torch.cat(self._meeting.exchange(self._index, part), dim=-1)

    def receive(self, shape: tuple[int, ...]) -> torch.Tensor:
        raise AssertionError(f"nobody sends {shape}")

    def send(self, hidden: torch.Tensor) -> None:
        raise AssertionError(f"nobody receives {tuple(hidden.shape)}")


def emulated(directory: Path, prompts: Sequence[Prompt], *, column_blocks: int = 1) -> list[torch.Tensor]:
    """Logits of every prompt, [t, vocab_size] each; all ranks have to have the same ones."""
    tp = TrtllmConfig.read(directory).tp
    meeting = Meeting(tp)
    results: list[list[torch.Tensor]] = [[] for _ in range(tp)]
    faults: list[Exception] = []

    def run(index: int) -> None:
        try:
            rank = RankDecoder(directory, index, ThreadCollectives(meeting, index), column_blocks=column_blocks)
            with torch.inference_mode():
                for ids, table in prompts:
                    rows = None if table is None else torch.as_tensor(table)
                    logits = rank.logits(torch.as_tensor(np.asarray(ids, dtype=np.int64)), rows)
                    assert logits is not None
                    results[index].append(logits)
        except BrokenBarrierError:
            pass  # another rank said why
        except Exception as fault:
            faults.append(fault)
            meeting.leave()

    threads = [Thread(target=run, args=(index,)) for index in range(tp)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    for others in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], others, strict=True))
    return results[0]

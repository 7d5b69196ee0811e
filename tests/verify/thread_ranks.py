"""The ranks of a converted decoder as threads of this process: the collectives of the gloo processes without them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from threading import Barrier, BrokenBarrierError

import numpy as np
import torch

from nvlm_trt.decoder.trtllm_config import TrtllmConfig
from nvlm_trt.emulation.rank import RankDecoder
from nvlm_trt.verify.sharded import Prompt


class Meeting:
    """Where the ranks of one stage meet: what they bring is handed to each of them in the order of ranks."""

    def __init__(self, ranks: int) -> None:
        self._barrier = Barrier(ranks, timeout=60)
        self._brought: list[torch.Tensor | None] = [None] * ranks

    def exchange(self, place: int, tensor: torch.Tensor) -> list[torch.Tensor]:
        self._brought[place] = tensor
        self._barrier.wait()
        brought = [each for each in self._brought if each is not None]
        self._barrier.wait()
        return brought

    def leave(self) -> None:
        self._barrier.abort()


Mailbox = Queue[torch.Tensor | None]
"""What a rank gets from the one a stage before; None when that has failed."""


class ThreadCollectives:
    """One rank's line to the others."""

    def __init__(self, meeting: Meeting, place: int, inbox: Mailbox, outbox: Mailbox | None) -> None:
        self._meeting, self._place, self._inbox, self._outbox = meeting, place, inbox, outbox

    def all_reduce(self, partial: torch.Tensor) -> torch.Tensor:
        return torch.stack(self._meeting.exchange(self._place, partial)).sum(dim=0)

    def all_gather(self, part: torch.Tensor) -> torch.Tensor:
        return torch.cat(self._meeting.exchange(self._place, part), dim=-1)

    def receive(self, shape: tuple[int, ...]) -> torch.Tensor:
        hidden = self._inbox.get(timeout=60)
        if hidden is None:
            raise BrokenBarrierError
        assert tuple(hidden.shape) == shape
        return hidden

    def send(self, hidden: torch.Tensor) -> None:
        assert self._outbox is not None
        self._outbox.put(hidden)


def emulated(directory: Path, prompts: Sequence[Prompt], *, column_blocks: int = 1) -> list[torch.Tensor]:
    """Logits of every prompt, [t, vocab_size] each; all ranks of the last stage have to have the same ones."""
    config = TrtllmConfig.read(directory)
    tp, world_size = config.tp, config.world_size
    meetings = [Meeting(tp) for _ in range(config.pp)]
    mailboxes: list[Mailbox] = [Queue() for _ in range(world_size)]
    faults: list[Exception] = []

    def run(index: int) -> list[torch.Tensor]:
        outbox = mailboxes[index + tp] if index + tp < world_size else None
        line = ThreadCollectives(meetings[index // tp], index % tp, mailboxes[index], outbox)
        try:
            rank = RankDecoder(directory, index, line, column_blocks=column_blocks)
            with torch.inference_mode():
                outputs = [
                    rank.logits(torch.as_tensor(np.asarray(ids, dtype=np.int64)), as_rows(table))
                    for ids, table in prompts
                ]
            return [logits for logits in outputs if logits is not None]
        except BrokenBarrierError:
            return []  # another rank said why
        except Exception as fault:
            faults.append(fault)
            for meeting in meetings:
                meeting.leave()
            for mailbox in mailboxes:
                mailbox.put(None)
            return []

    with ThreadPoolExecutor(world_size) as pool:
        results = list(pool.map(run, range(world_size)))
    if faults:
        raise faults[0]
    first, *others = results[-tp:]
    for other in others:
        assert all(torch.equal(one, same) for one, same in zip(first, other, strict=True))
    return first


def as_rows(table: object) -> torch.Tensor | None:
    return None if table is None else torch.as_tensor(table)

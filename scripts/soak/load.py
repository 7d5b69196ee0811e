"""The load: as much as the server can do, measured; then a share of it, arriving by chance as people do."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from .ask import WAYS, Asker, LostError
from .bad import Bad
from .cases import Case
from .hang_up import PHASES, hang_up
from .references import Expected

CANCELLED: Final = 0.01
BAD: Final = 0.01
MOST_OPEN: Final = 28
"""Requests under way, beyond which arrivals are put off and counted: the machine is busy with other work then, and a
queue that overflows would be its fault."""


@dataclass(slots=True)
class Tally:
    """What became of the requests so far.

    Attributes:
        right: Good answers by way.
        seconds: Time of day (monotonic) and seconds to the whole answer of each.
        wrong: Answers that differ from their reference.
        lost: Good requests without an answer.
        hung_up: By phase and what became of them.
        refused: Bad requests that were refused as they have to be, by kind.
        misjudged: Bad requests that were not.
        put_off: Arrivals that had to wait for others to end.
    """

    right: Counter[str] = field(default_factory=Counter)
    seconds: list[tuple[float, float]] = field(default_factory=list)
    wrong: list[dict[str, Any]] = field(default_factory=list)
    lost: list[dict[str, Any]] = field(default_factory=list)
    hung_up: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    misjudged: list[dict[str, Any]] = field(default_factory=list)
    put_off: int = 0

    @property
    def failures(self) -> int:
        """What a soak must not have."""
        return len(self.wrong) + len(self.lost) + len(self.misjudged)


@dataclass(frozen=True, slots=True)
class Material:
    """What is sent.

    Attributes:
        cases: Good requests.
        references: Their answers by name.
        bad: Bad requests.
    """

    cases: Sequence[Case]
    references: Mapping[str, Expected]
    bad: Sequence[Bad]


class Load:
    """Sends requests and judges the answers.

    Args:
        asker: Asks.
        material: What is sent.
        seed: Of the order and the times.
    """

    def __init__(self, asker: Asker, material: Material, seed: int) -> None:
        self._asker = asker
        self._material = material
        self._chance = random.Random(seed)
        self._bad_place = 0
        self._cut_place = 0
        self.tally = Tally()

    async def capacity(self, seconds: float, callers: int) -> float:
        """Good answers a second of `callers` who ask again as soon as they have an answer; every case at least once."""
        waiting = list(self._material.cases)
        ends = time.monotonic() + seconds
        began, count = time.monotonic(), 0

        async def call() -> None:
            nonlocal count
            while waiting or time.monotonic() < ends:
                case = waiting.pop() if waiting else self._chance.choice(self._material.cases)
                await self._good(case, self._way())
                count += 1

        await asyncio.gather(*(call() for _ in range(callers)))
        return count / (time.monotonic() - began)

    async def arrive(self, rate: float, until: float, tick: Callable[[], None]) -> None:
        """Send `rate` requests a second at random times until a moment (monotonic); return when all have ended."""
        open_now: set[asyncio.Task[None]] = set()
        due = time.monotonic()
        while (due := due + self._chance.expovariate(rate)) < until:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if len(open_now) >= MOST_OPEN:
                self.tally.put_off += 1
                while len(open_now) >= MOST_OPEN:
                    await asyncio.wait(open_now, return_when=asyncio.FIRST_COMPLETED)
                due = time.monotonic()
            task = asyncio.create_task(self._one())
            open_now.add(task)
            task.add_done_callback(open_now.discard)
            tick()
        await asyncio.gather(*open_now)

    def _way(self) -> str:
        return self._chance.choices(list(WAYS), list(WAYS.values()))[0]

    async def _one(self) -> None:
        kind = self._chance.random()
        case, chance = self._chance.choice(self._material.cases), random.Random(self._chance.random())
        if kind < CANCELLED:
            phase = PHASES[self._cut_place % len(PHASES)]
            self._cut_place += 1
            await self._cut(case, phase, chance)
        elif kind < CANCELLED + BAD:
            bad = self._material.bad[self._bad_place % len(self._material.bad)]
            self._bad_place += 1
            await self._refused(bad)
        else:
            await self._good(case, self._way())

    async def _good(self, case: Case, way: str) -> None:
        began = time.monotonic()
        said = {"case": case.name, "way": way, "at": time.time()}
        try:
            answer = await self._asker.ask(case, way)
        except LostError as error:
            self.tally.lost.append({**said, "why": str(error), "after_s": time.monotonic() - began})
            return
        expected = self._material.references[case.name]
        if answer != expected:
            self.tally.wrong.append({**said, "expected": str(expected), "answer": str(answer)})
            return
        self.tally.right[way] += 1
        self.tally.seconds.append((began, time.monotonic() - began))

    async def _cut(self, case: Case, phase: str, chance: random.Random) -> None:
        try:
            self.tally.hung_up[f"{phase}: {await hang_up(self._asker, case, phase, chance)}"] += 1
        except Exception as error:  # whatever a broken stream raises: the client had not hung up yet
            self.tally.lost.append({"case": case.name, "way": f"to hang up {phase}", "why": repr(error)})

    async def _refused(self, bad: Bad) -> None:
        try:
            status, text = await self._asker.refused(bad.path, bad.body, bad.headers)
        except Exception as error:
            self.tally.misjudged.append({"kind": bad.name, "why": repr(error)})
            return
        if status == bad.status and bad.code in text:
            self.tally.refused[bad.name] += 1
        else:
            seen = {"status": status, "text": text[:300], "expected": f"{bad.status} {bad.code}"}
            self.tally.misjudged.append({"kind": bad.name, **seen})

"""The summary of a soak: JSON, a page of Markdown, plots."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nvlm_trt.bench.show.canvas import canvas, png

from .load import Tally
from .verdict import MB, Check, growth, slope_per_hour
from .watch import Sample


@dataclass(frozen=True, slots=True)
class Soaked:
    """All that a soak found out.

    Attributes:
        settings: How it was run.
        samples: Under load, in order.
        tally: What became of the requests.
        idle: Without clients, before and after.
        checks: The verdict.
        warm_up: Seconds that don't count.
        began: `time.monotonic()` of the first sample.
        turned_away: Good requests that were told to come again, and were answered then.
    """

    settings: dict[str, Any]
    samples: Sequence[Sample]
    tally: Tally
    idle: tuple[Sample, Sample]
    checks: Sequence[Check]
    warm_up: float
    began: float
    turned_away: int

    @property
    def passed(self) -> bool:
        """Whether every check is within its bound."""
        return all(check.passed for check in self.checks)


def summary(soaked: Soaked) -> dict[str, Any]:
    """The figures, as JSON has them."""
    tally, samples = soaked.tally, soaked.samples
    seconds = sorted(taken for _, taken in tally.seconds)
    loads = [one.load for one in samples] or [math.nan]
    names = soaked.idle[0].processes.keys() & soaked.idle[1].processes.keys()

    def megabytes(name: str) -> float:
        return growth(
            [one for one in samples if name in one.processes], soaked.warm_up, lambda one: one.processes[name].pss
        )

    return {
        "passed": soaked.passed,
        "settings": soaked.settings,
        "checks": [{**asdict(check), "passed": check.passed} for check in soaked.checks],
        "answers": {**told(tally), "turned_away": soaked.turned_away},
        "seconds": {f"p{share}": _quantile(seconds, share / 100) for share in (50, 90, 99, 100)},
        "memory_slope_mb_per_hour": slope_per_hour(samples, soaked.warm_up, lambda one: one.pss) / MB,
        "growth_mb_by_process": {name: megabytes(name) / MB for name in sorted(names)},
        "idle": [_shown(one) for one in soaked.idle],
        "machine_load": {
            "median": statistics.median(loads),
            "largest": max(loads),
        },
        "samples": len(samples),
    }


def told(tally: Tally) -> dict[str, Any]:
    """What became of the requests."""
    return {
        "right": dict(tally.right),
        "wrong": tally.wrong,
        "lost": tally.lost,
        "hung_up": dict(tally.hung_up),
        "refused": dict(tally.refused),
        "misjudged": tally.misjudged,
        "put_off": tally.put_off,
    }


def _shown(sample: Sample) -> dict[str, Any]:
    return {
        "memory_mb": sample.pss / MB,
        "shm_mb": sample.shm / MB,
        "fds": sample.fds,
        "threads": sample.threads,
        **sample.figures,
    }


def _quantile(values: Sequence[float], share: float) -> float | None:
    return values[min(len(values) - 1, int(share * len(values)))] if values else None


def markdown(facts: dict[str, Any]) -> str:
    """The summary as a page."""
    settings, answers = facts["settings"], facts["answers"]
    right = sum(answers["right"].values())
    lines = [
        f"# A soak of {settings['duration']}: {'passed' if facts['passed'] else 'FAILED'}",
        "",
        f"    {settings['command']}",
        "",
        f"{settings['when']}. {settings['machine']}; load of the machine while it ran: median "
        f"{facts['machine_load']['median']:.1f}, at most {facts['machine_load']['largest']:.1f} (it was shared). "
        f"Capacity, measured before: {settings['capacity']:.2f} answers a second with "
        f"{settings['callers']} callers; sent: {settings['rate']:.2f} a second ({settings['load']:.0%}), "
        "arriving at random.",
        "",
        "| check | seen | at most | |",
        "|---|---|---|---|",
        *(
            f"| {one['name']} | {one['seen']:.4g} {one['unit']} | {one['most']:g} {one['unit']} | "
            f"{'ok' if one['passed'] else '**FAILED**'} |"
            for one in facts["checks"]
        ),
        "",
        f"{right:,} answers were right, each compared with what the same engine says in another process: text, reason "
        f"of the end, tokens of the prompt and of the answer. {settings['cases']} cases ({settings['left_out']} more "
        f"were left out: two tokens tie, so that rounding decides). {sum(answers['hung_up'].values())} clients hung "
        f"up, {sum(answers['refused'].values())} bad requests were refused with the right status, "
        f"{answers['put_off']} arrivals were put off because {settings['most_open']} requests were open; "
        f"{answers['turned_away']} times a good request was told to come again (503 with Retry-After), and was "
        "answered then.",
        "",
        "| way | right answers |",
        "|---|---|",
        *(f"| {way} | {count:,} |" for way, count in sorted(answers["right"].items())),
        "",
        "| hung up | clients |",
        "|---|---|",
        *(f"| {phase} | {count} |" for phase, count in sorted(answers["hung_up"].items())),
        "",
        "| bad request, refused | times |",
        "|---|---|",
        *(f"| {kind} | {count} |" for kind, count in sorted(answers["refused"].items())),
        "",
        "Seconds to a whole answer: "
        + ", ".join(f"{name} {value:.2f}" for name, value in facts["seconds"].items() if value)
        + ".",
        "",
        f"Growth is the median of the last twentieth of the run less that of as long a time after the warm-up "
        f"({settings['warm_up']:.0f} s). Before the clock starts, every case was asked at full load, and for a while "
        f"{settings['most_open']} at once. Bounded, and "
        f"full by then: the KV cache ({settings['kv_cache_mib']} MiB) and the vision cache "
        f"({settings['vision_cache_mib']} MiB); contents were given up "
        f"{_counted(facts, 'nvlm_kv_evicted_blocks_total'):,.0f} "
        "times (KV blocks) and "
        f"{_counted(facts, 'nvlm_vision_cache_evictions_total'):,.0f} "
        f"times (tiles) while it ran. A straight line through the memory after the warm-up rises by "
        f"{facts['memory_slope_mb_per_hour']:+.1f} MB an hour.",
        "",
        "| process | growth of memory, MB |",
        "|---|---|",
        *(f"| {name} | {value:+.1f} |" for name, value in facts["growth_mb_by_process"].items()),
        "",
        "| without clients | before | after |",
        "|---|---|---|",
        *(
            f"| {name} | {value:,.0f} | {facts['idle'][1].get(name, float('nan')):,.0f} |"
            for name, value in facts["idle"][0].items()
        ),
        "",
    ]
    return "\n".join(lines)


def _counted(facts: dict[str, Any], name: str) -> float:
    """What a counter gained between the two idle moments."""
    before, after = (each.get(name, 0.0) for each in facts["idle"])
    return float(after - before)


def plot(soaked: Soaked, file: Path) -> None:
    """Draw memory, shared memory, descriptors, threads, requests and times to the answer over time."""
    figure = canvas(11, 12)
    panels = figure.subplots(6, 1, sharex=True)
    samples = soaked.samples
    minutes = [one.at / 60 for one in samples]
    memory, shm, fds, threads, working, taken = panels
    for name in sorted({name for one in samples for name in one.processes}):
        kept = [one for one in samples if name in one.processes]
        memory.plot([one.at / 60 for one in kept], [one.processes[name].pss / MB for one in kept], label=name, lw=1)
    memory.plot(minutes, [one.pss / MB for one in samples], label="together", color="black", lw=1.2)
    memory.legend(ncols=5, fontsize=7, loc="center")
    memory.set_ylabel("memory (PSS), MB")
    shm.plot(minutes, [one.shm / MB for one in samples], color="tab:purple", lw=1)
    shm.set_ylabel("/dev/shm, MB")
    for axes, name, unit in ((fds, "fds", "descriptors"), (threads, "threads", "threads")):
        axes.plot(minutes, [getattr(one, name) for one in samples], color="tab:green", lw=1)
        axes.set_ylabel(unit)
    working.plot(minutes, [one.figures.get("nvlm_requests_working", 0) for one in samples], lw=0.8, label="requests")
    blocks = [one.figures.get("nvlm_kv_blocks", 0) - one.figures.get("nvlm_kv_free_blocks", 0) for one in samples]
    working.plot(minutes, blocks, lw=0.8, label="KV blocks held")
    working.plot(minutes, [one.load for one in samples], lw=0.8, label="load of the machine", color="grey")
    working.legend(ncols=3, fontsize=7)
    times = soaked.tally.seconds
    taken.plot([(began - soaked.began) / 60 for began, _ in times], [each for _, each in times], ".", ms=1.5, alpha=0.4)
    taken.set(yscale="log", ylabel="s to the answer", xlabel="minutes")
    for axes in panels:
        axes.axvspan(0, soaked.warm_up / 60, color="0.93")
        axes.grid(alpha=0.3)
        for minute in _restarts(samples):
            axes.axvline(minute, color="red", lw=1)
    figure.suptitle(
        f"Soak of {soaked.settings['duration']} at {soaked.settings['load']:.0%} of capacity (grey: warm-up)"
    )
    file.write_bytes(png(figure))


def _restarts(samples: Sequence[Sample]) -> list[float]:
    """Minutes at which the server was replaced."""
    counts = [(one.at / 60, one.restarts) for one in samples]
    return [at for (_, before), (at, now) in itertools.pairwise(counts) if now > before]

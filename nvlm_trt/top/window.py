"""Figures of the last seconds, from pages of Prometheus' text that were read one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Scrape:
    """A page.

    Attributes:
        at: When it was read, in seconds of any clock.
        values: By the names and labels of samples.
    """

    at: float
    values: Mapping[tuple[str, Labels], float]

    @classmethod
    def read(cls, text: str, at: float) -> Scrape:
        """Read a page.

        Raises:
            ValueError: it is none.
        """
        families = text_string_to_metric_families(text)
        samples = [sample for family in families for sample in family.samples]
        return cls(at, {(one.name, frozenset(one.labels.items())): one.value for one in samples})

    def matching(self, name: str, labels: Labels) -> dict[Labels, float]:
        """The samples of a name that have these labels, and maybe others."""
        return {seen: value for (known, seen), value in self.values.items() if known == name and labels <= seen}


class Window:
    """The pages of the last seconds.

    A counter that is smaller than before began anew, with its process: what it shows then has come since. A page may
    lack what the gateway did not get from tritonserver in time: its counters go on from where they were seen last, or,
    where the window has no page with them, from where they are seen first.

    Args:
        seconds: How far back it goes; two pages are kept in any case.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._scrapes: deque[Scrape] = deque()

    def add(self, scrape: Scrape) -> None:
        """Take the next page, and forget those that are too old."""
        self._scrapes.append(scrape)
        while len(self._scrapes) > 2 and scrape.at - self._scrapes[1].at >= self._seconds:
            self._scrapes.popleft()

    @property
    def seconds(self) -> float:
        """From the first page to the last."""
        return self._scrapes[-1].at - self._scrapes[0].at if self._scrapes else 0.0

    def now(self, name: str, **labels: str) -> float | None:
        """What the last page shows, summed over other labels; None where it shows nothing."""
        seen = self._scrapes[-1].matching(name, frozenset(labels.items())) if self._scrapes else {}
        return sum(seen.values()) if seen else None

    def now_by(self, name: str, label: str) -> dict[str, float]:
        """What the last page shows, by the values of a label."""
        return _by(self._scrapes[-1].matching(name, frozenset()), label) if self._scrapes else {}

    def rate(self, name: str, **labels: str) -> float | None:
        """How fast a counter grows, a second; None where there is none, or one page alone."""
        grown = self._grown(name, frozenset(labels.items()))
        return sum(grown.values()) / self.seconds if grown and self.seconds else None

    def rate_by(self, name: str, label: str) -> dict[str, float]:
        """How fast counters grow, by the values of a label; those that stand still are left out."""
        grown = _by(self._grown(name, frozenset()), label)
        return {key: value / self.seconds for key, value in grown.items() if value and self.seconds}

    def ratio(self, part: str, *whole: str) -> float | None:
        """The share of a counter's growth in that of some; None where those stand still."""
        rates = [self.rate(name) for name in whole]
        total, share = sum(rate for rate in rates if rate is not None), self.rate(part)
        return None if share is None or not total else share / total

    def quantile(self, name: str, share: float) -> float | None:
        """A quantile of a histogram's values, as Prometheus' `histogram_quantile` finds it; None where there are none.

        Args:
            name: Of the histogram.
            share: 0.5 is the median.
        """
        buckets: dict[float, float] = {}
        for labels, count in self._grown(f"{name}_bucket", frozenset()).items():
            edge = float(dict(labels)["le"])
            buckets[edge] = buckets.get(edge, 0.0) + count
        edges = sorted(buckets)
        if not edges or not buckets[edges[-1]]:
            return None
        wanted, below, low = share * buckets[edges[-1]], 0.0, 0.0
        for edge in edges:
            if buckets[edge] >= wanted:
                inside = buckets[edge] - below
                return low if edge == float("inf") or not inside else low + (edge - low) * (wanted - below) / inside
            below, low = buckets[edge], edge
        return low

    def _grown(self, name: str, labels: Labels) -> dict[Labels, float]:
        grown: dict[Labels, float] = {}
        pages = [scrape.matching(name, labels) for scrape in self._scrapes]
        last = dict(pages[0]) if pages else {}
        for page in pages[1:]:
            for seen, value in page.items():
                since = last.get(seen, 0.0 if last else value)
                grown[seen] = grown.get(seen, 0.0) + (value - since if value >= since else value)
            last |= page
        return grown


def _by(values: Mapping[Labels, float], label: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for labels, value in values.items():
        key = dict(labels).get(label, "")
        found[key] = found.get(key, 0.0) + value
    return found

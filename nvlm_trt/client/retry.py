"""How often a request is sent again, and after how long."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits that double, each shortened by up to a half by chance, so that many who failed together do not meet again.

    Attributes:
        attempts: Failures after which a request is not sent again.
        first: Seconds of the first wait.
        longest: Seconds of a wait at most.
    """

    attempts: int = 6
    first: float = 1.0
    longest: float = 30.0

    def wait(self, failed: int, random: Random) -> float:
        """Seconds before the next attempt.

        Args:
            failed: Attempts so far, from 1 on.
            random: Where chance comes from.
        """
        whole = min(self.longest, self.first * 2.0 ** min(failed - 1, 60))
        return whole * (1.0 - random.random() / 2.0)

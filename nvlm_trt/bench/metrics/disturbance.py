"""What disturbed the measurement."""

from __future__ import annotations

from nvlm_trt.bench.metrics.base import Measured, Metric


class OthersLoad(Metric):
    """Cores that others kept busy while the requests were under way.

    Formula: (busy time of all cores, time given to other machines included - processor time of the subject's own
    processes) / wall time, over the requests of a round.
    """

    name, title, unit, better, section = "others_load", "busy with other work", "cores", "lower", "disturbance"

    def samples(self, measured: Measured) -> list[float]:
        """One number a round."""
        return [done.foreign_cores for done in measured.rounds if done.foreign_cores is not None]

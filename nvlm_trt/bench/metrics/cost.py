"""What a precision costs: right answers, disk, time to load, memory."""

from __future__ import annotations

from collections.abc import Sequence

from nvlm_trt.bench.metrics.base import Measured, Metric
from nvlm_trt.bench.spread import Spread, mean_score


class Accuracy(Metric):
    """Answers of the task that are right.

    Formula: mean score of the task's samples (each as its own metric scores it), x 100; the range is the 95% interval
    over the samples: Wilson's, or mean +- 1.96 s / sqrt(n) where a score is beyond 1. Answers are greedy, so rounds add
    nothing.
    """

    name, title, unit, better, section = "accuracy", "accuracy", "%", "higher", "cost"

    def samples(self, measured: Measured) -> list[float]:
        """One score a sample, x 100."""
        return [100 * score for score in measured.scores]

    def spread(self, samples: Sequence[float]) -> Spread:
        """The mean and its interval."""
        share = mean_score([sample / 100 for sample in samples])
        return Spread(100 * share.value, 100 * share.low, 100 * share.high, share.n, share.kind)


class SizeOnDisk(Metric):
    """What serving needs on disk.

    Formula: bytes of the files of both engines and the tokenizer / 10^6; of the reference, of the checkpoint's files.
    """

    name, title, unit, better, section = "size_on_disk", "size on disk", "MB", "lower", "cost"

    def samples(self, measured: Measured) -> list[float]:
        """One number."""
        return [] if measured.size_bytes is None else [measured.size_bytes / 1e6]


class LoadTime(Metric):
    """From nothing to ready.

    Formula: seconds that loading the engines takes after libraries are imported; of a server, from its start until it
    is ready. One sample a round, files in the system's cache.
    """

    name, title, unit, better, section = "load_time", "load time", "s", "lower", "cost"

    def samples(self, measured: Measured) -> list[float]:
        """One number a round."""
        return [done.load_s for done in measured.rounds if done.load_s is not None]


class PeakHostMemory(Metric):
    """Most memory of the host held at a time.

    Formula: largest resident set (VmHWM) of the subject's own process / 2^20; of a server, the sum of those of all its
    processes, which counts shared pages once for each. Libraries are in it.
    """

    name, title, unit, better, section = "host_memory", "peak host memory", "MiB", "lower", "cost"

    def samples(self, measured: Measured) -> list[float]:
        """One number a round."""
        return [done.peak_bytes / 2**20 for done in measured.rounds if done.peak_bytes is not None]


class EngineMemory(Metric):
    """Memory of the host without the libraries.

    Formula: peak host memory less the resident set of the process right before it loads.
    """

    name, title, unit, better, section = "engine_memory", "host memory beyond libraries", "MiB", "lower", "cost"

    def samples(self, measured: Measured) -> list[float]:
        """One number a round."""
        return [
            (done.peak_bytes - done.before_bytes) / 2**20
            for done in measured.rounds
            if done.peak_bytes is not None and done.before_bytes is not None
        ]


class PeakGpuMemory(Metric):
    """Most GPU memory held at a time, where engines or reference are on a GPU.

    Formula: (most memory in use on all GPUs together, as nvidia-smi tells it twice a second from before loading until
    the requests are answered - what was in use before loading) / 2^20.
    """

    name, title, unit, better, section = "gpu_memory", "peak GPU memory", "MiB", "lower", "cost"

    def samples(self, measured: Measured) -> list[float]:
        """One number a round."""
        return [done.gpu_peak_bytes / 2**20 for done in measured.rounds if done.gpu_peak_bytes is not None]

"""Load tools of others, run against the same server with the same requests."""

from __future__ import annotations

from nvlm_trt.bench.peers.aiperf import run_aiperf
from nvlm_trt.bench.peers.perf_analyzer import run_perf_analyzer
from nvlm_trt.bench.peers.tool import PeerTask, ToolName

RUN = {"perf_analyzer": run_perf_analyzer, "aiperf": run_aiperf}
"""How each is run."""

__all__ = ["RUN", "PeerTask", "ToolName"]

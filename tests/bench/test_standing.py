"""Our engines beside engines of others."""

from __future__ import annotations

import pytest

from nvlm_trt.bench.report import Report
from nvlm_trt.bench.show.markdown import as_markdown
from nvlm_trt.bench.show.standing import standings


@pytest.fixture
def beside_peers(scenario_report: Report) -> Report:
    """The report with the baseline as if it were a peer that is four times slower, and knows no images."""
    baseline, *others = scenario_report.subjects
    figures = [
        each.model_copy(update={"range": each.range.model_copy(update={"value": each.range.value / 4})})
        for each in baseline.figures
        if not each.metric.startswith("image")
    ]
    peer = baseline.model_copy(update={"kind": "peer", "name": "others", "figures": tuple(figures)})
    return scenario_report.model_copy(update={"subjects": (peer, *others)})


def test_a_figure_stands_beside_those_of_peers_and_below_its_ceiling(beside_peers: Report) -> None:
    found = {(each.row.metric, each.row.size, each.engine): each for each in standings(beside_peers)}
    assert {metric for metric, _, _ in found} == {"prompt_tokens_per_s", "decode_tokens_per_s", "streams_tokens_per_s"}
    decode = found["decode_tokens_per_s", 1, "mini-fp32"]
    share = beside_peers.subjects[1].figure("decode_read_share", size=1)
    assert decode.ratios == (pytest.approx(4),)
    assert share is not None
    assert decode.share == share.range.value
    assert decode.ceiling == pytest.approx(10.0 * 100 / share.range.value)
    streams = found["streams_tokens_per_s", 4, "mini-fp32"]
    assert (streams.ceiling, streams.share) == (None, None)


def test_the_table_names_every_peer(beside_peers: Report) -> None:
    shown = as_markdown(beside_peers)
    assert "| engine | median | ceiling | share | / others |" in shown
    assert "| throughput of streams, 4 streams [tokens/s] ↑ | mini-fp32 | 1.60 | - | - | 4x |" in shown


def test_without_peers_there_is_no_such_table(scenario_report: Report) -> None:
    assert not list(standings(scenario_report))
    assert "Beside engines of others" not in as_markdown(scenario_report)

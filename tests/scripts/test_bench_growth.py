"""scripts/bench_growth.py: what it builds, and what it makes of the costs. Nothing is timed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Costs = dict[str, dict[str, float]]


@pytest.fixture
def bench_growth(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("bench_growth")


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *options: object) -> int:
    monkeypatch.setattr(sys, "argv", ["bench_growth.py", *map(str, options)])
    code: int = script.main()
    return code


def test_costs_are_fitted_over_layers_and_over_ranks(
    bench_growth: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built: list[tuple[int, int]] = []

    def build(_: Path, layers: int, ranks: int) -> Costs:
        built.append((layers, ranks))
        disturbed = 10.0 if len(built) < 5 else 0.0  # the first round, which medians leave out
        return {
            "vision-export": {"seconds": 0.5 * layers + disturbed, "memory": 300.0},
            "decoder-convert": {"seconds": 0.25 * layers * ranks**0.5 + disturbed, "memory": 400.0},
        }

    monkeypatch.setattr(bench_growth, "_build", build)
    assert run(bench_growth, monkeypatch, "--work", tmp_path, "--layers", "4,2", "--ranks", "1,4,2") == 0
    assert built == [(2, 1), (4, 1), (2, 2), (2, 4)] * 3
    curves = json.loads((tmp_path / "growth.json").read_text())["curves"]
    exponents = {(each["stage"], each["axis"], each["cost"]): each["exponent"] for each in curves}
    assert exponents == {
        ("vision-export", "layers", "seconds"): pytest.approx(1),
        ("vision-export", "layers", "memory"): pytest.approx(0),
        ("decoder-convert", "layers", "seconds"): pytest.approx(1),
        ("decoder-convert", "layers", "memory"): pytest.approx(0),
        ("vision-export", "ranks", "seconds"): pytest.approx(0),
        ("vision-export", "ranks", "memory"): pytest.approx(0),
        ("decoder-convert", "ranks", "seconds"): pytest.approx(0.5),
        ("decoder-convert", "ranks", "memory"): pytest.approx(0),
    }
    assert (
        "| decoder-convert | ranks | seconds [s] | 1: 0.5, 2: 0.707, 4: 1.00 | 0.50 | 0.00 |"
        in (tmp_path / "growth.md").read_text()
    )


def test_a_build_is_a_new_one_of_the_layers_and_ranks_that_are_asked_for(
    bench_growth: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "weights").write_text("mine")
    costs = bench_growth._build(tmp_path, 1, 2)
    assert set(costs) == {"vision-export", "decoder-convert"}
    assert all(cost["seconds"] > 0 and cost["memory"] > 10 for cost in costs.values())
    config = json.loads((tmp_path / "checkpoint-1" / "config.json").read_text())
    assert config["llm_config"]["num_hidden_layers"] == config["vision_config"]["num_hidden_layers"] == 1
    assert "tp: 2" in (tmp_path / "tp2.yaml").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "engine", "tp2.yaml"]
    assert (tmp_path / "engine" / "weights").read_text() == "mine"

"""The table of faults: what the tests measured, each fault once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def chaos(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("chaos")


def outcome(case: int, said: str = "passed", **figures: object) -> dict[str, object]:
    figure = {"variant": "", "time_ms": None, "memory_mb": None, "others": None, **figures}
    return {"case": case, "test": f"tests/faults/test_a.py::test_{case}", "outcome": said, "figures": [figure]}


def test_a_row_holds_the_range_of_times_the_most_memory_and_the_largest_gap(chaos: ModuleType) -> None:
    lines = [
        outcome(6, time_ms=4.4, memory_mb=0.2, others="none; largest gap of a stream 9 ms"),
        outcome(6, time_ms=1250.0, memory_mb=3.7, others="none; largest gap of a stream 31 ms; 5 others exact"),
        outcome(7, time_ms=1.0),
    ]
    (case,) = chaos.read_cases(lines, [6])
    assert case.holds
    assert case.cells[4:] == (
        "4 ms to 1.2 s",
        "4 MB",
        "none; 5 others exact; largest gap of a stream 31 ms",
        "2 passed",
    )


def test_a_fault_without_a_test_or_with_one_that_fails_does_not_hold(chaos: ModuleType) -> None:
    cases = chaos.read_cases([outcome(1), outcome(1, "failed"), outcome(2, "skipped")], [1, 2, 3])
    assert [case.holds for case in cases] == [False] * 3
    assert [case.cells[-1] for case in cases] == ["1 failed", "1 failed", "no test"]


@pytest.mark.parametrize("words", [["--only", "27"], ["--only", "a"], ["--duration", "0"], ["--what"]])
def test_bad_usage_exits_with_2(chaos: ModuleType, words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        chaos.main(words)
    assert ended.value.code == 2


@pytest.mark.parametrize(("said", "status"), [("passed", 0), ("failed", 1)])
def test_the_report_is_written_and_the_status_says_whether_all_hold(
    chaos: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    said: str,
    status: int,
) -> None:
    docs = tmp_path / "docs.md"
    docs.write_text(f"before\n{chaos.BEGIN}\nold\n{chaos.END}\nafter\n")

    def run(only: list[int], outcomes: Path, duration: int) -> None:
        outcomes.write_text(json.dumps(outcome(only[0], said, time_ms=2.0)) + "\n")

    monkeypatch.setattr(chaos, "_run", run)
    words = ["--only", "5", "--report", str(tmp_path / "report"), "--docs", str(docs), "--json"]
    assert chaos.main(words) == status
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "report" / "report.json").read_text())
    assert printed["cases"][0]["holds"] == (status == 0)
    before, table, after = docs.read_text().partition(chaos.BEGIN)[0], docs.read_text(), docs.read_text()[-7:]
    assert (before, after) == ("before\n", "\nafter\n")
    assert "| 5 |" in table
    assert "old" not in table


def test_all_26_are_described_and_have_a_row_in_the_docs() -> None:
    cases = yaml.safe_load((ROOT / "tests" / "faults" / "cases.yaml").read_text())
    assert list(cases) == list(range(1, 27))
    assert all(texts.keys() == {"what", "raw", "ours"} for texts in cases.values())
    page = (ROOT / "docs" / "reliability.md").read_text()
    for number, texts in cases.items():
        assert f"| {number} | {texts['what']} |" in page

"""A run: concurrent, resumable, one record a sample."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nvlm_trt.errors import BusyError, ImageRejected, ServerError, UserError
from nvlm_trt.eval.answer import Answer
from nvlm_trt.eval.records import RecordFile
from nvlm_trt.eval.run import run_eval


def lines(output: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (output / "records.jsonl").read_text().splitlines()]


def test_every_sample_has_a_record_in_the_order_of_the_task(sample, scripted, tmp_path):
    samples = [sample(name, category=name.upper()) for name in "abcd"]
    told: list[tuple[int, int]] = []
    records = run_eval(
        samples, scripted({"b": "Yes"}), output=tmp_path, concurrency=3, progress=lambda *count: told.append(count)
    )
    assert [record.id for record in records] == [*"abcd"]
    assert [record.score for record in records] == [0, 1, 0, 0]
    assert records[1].text == "Yes"
    assert records[1].category == "B"
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert sorted(str(line["id"]) for line in lines(tmp_path)) == [*"abcd"]


def test_several_samples_are_asked_at_a_time(sample):
    meeting = threading.Barrier(3, timeout=20)

    class Patient:
        def answer(self, _sample):
            meeting.wait()
            return Answer("yes", 1, 0.1)

    records = run_eval([sample(name) for name in "abc"], Patient(), concurrency=3)
    assert [record.score for record in records] == [1, 1, 1]


def test_a_rerun_asks_only_what_is_missing(sample, scripted, tmp_path):
    samples = [sample(name) for name in "abc"]
    first = run_eval(samples[:2], scripted({}, "yes"), identity="x", output=tmp_path)
    again = scripted({}, "no")
    records = run_eval(samples, again, identity="x", output=tmp_path)
    assert again.asked == ["c"]
    assert records[:2] == first
    assert [record.text for record in records] == ["yes", "yes", "no"]


def test_another_engine_or_option_is_asked_anew(sample, scripted, tmp_path):
    run_eval([sample("a")], scripted({}, "yes"), identity="x", output=tmp_path)
    other = scripted({}, "no")
    assert run_eval([sample("a")], other, identity="y", output=tmp_path)[0].text == "no"
    assert other.asked == ["a"]


def test_a_changed_image_or_limit_is_asked_anew_and_a_changed_metric_is_scored_anew(sample, scripted, tmp_path):
    image = tmp_path / "a.png"
    image.write_bytes(b"first")
    before = sample("a", images=(image,))
    run_eval([before], scripted({}, "Yes."), identity="x", output=tmp_path)

    answerer = scripted({}, "no")
    mended = replace(before, metric="exact_match", category="new")
    (record,) = run_eval([mended], answerer, identity="x", output=tmp_path)
    assert (record.score, record.category, answerer.asked) == (1, "new", [])
    run_eval([replace(before, max_tiles=1)], answerer, identity="x", output=tmp_path)
    image.write_bytes(b"second")
    run_eval([before], answerer, identity="x", output=tmp_path)
    assert answerer.asked == ["a", "a"]


def test_a_fault_ends_the_run_and_keeps_what_was_answered(sample, scripted, tmp_path):
    samples = [sample(name) for name in "abc"]
    broken = scripted({"b": ServerError("the server died")}, "yes")
    with pytest.raises(ServerError, match="the server died"):
        run_eval(samples, broken, identity="x", output=tmp_path)
    assert [line["id"] for line in lines(tmp_path)] == ["a"]
    mended = scripted({}, "yes")
    assert [record.score for record in run_eval(samples, mended, identity="x", output=tmp_path)] == [1, 1, 1]
    assert mended.asked == ["b", "c"]


def test_an_interrupt_while_samples_are_handed_out_ends_the_run(sample, scripted):
    class Interrupted(list):
        def __iter__(self):
            yield from super().__iter__()
            raise KeyboardInterrupt

    class Slow(scripted):
        def answer(self, sample):
            time.sleep(0.02)
            return super().answer(sample)

    slow = Slow({})
    with pytest.raises(KeyboardInterrupt):
        run_eval(Interrupted(sample(str(number)) for number in range(100)), slow)
    assert len(slow.asked) < 100


def test_a_line_that_a_kill_cut_off_is_dropped(sample, scripted, tmp_path):
    samples = [sample(name) for name in "ab"]
    run_eval(samples, scripted({}, "yes"), identity="x", output=tmp_path)
    file = tmp_path / "records.jsonl"
    file.write_bytes(file.read_bytes()[:-9])
    resumed = scripted({}, "yes")
    run_eval(samples, resumed, identity="x", output=tmp_path)
    assert resumed.asked == ["b"]
    assert [line["id"] for line in lines(tmp_path)] == ["a", "b"]


def test_a_sample_that_cannot_be_answered_scores_0_and_is_asked_again_next_time(sample, scripted, tmp_path):
    samples = [sample("a"), sample("b", images=(tmp_path / "none.png",))]
    refusing = scripted({"b": ImageRejected("the image is damaged", seen="3 bytes")}, "yes")
    records = run_eval(samples, refusing, identity="x", output=tmp_path)
    assert [record.score for record in records] == [1, 0]
    assert records[1].error == "the image is damaged; seen: 3 bytes"
    mended = scripted({}, "yes")
    assert run_eval(samples, mended, identity="x", output=tmp_path)[1].error is None
    assert mended.asked == ["b"]


def test_nothing_to_evaluate_and_a_foreign_file_are_refused(sample, scripted, tmp_path):
    with pytest.raises(UserError, match="no samples"):
        run_eval([], scripted({}))
    (tmp_path / "records.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(UserError, match=r"no file of records; seen: .*records\.jsonl:1"):
        run_eval([sample("a")], scripted({}), output=tmp_path)


def test_two_runs_do_not_write_the_same_records(sample, scripted, tmp_path):
    with (
        RecordFile(tmp_path / "records.jsonl"),
        pytest.raises(BusyError, match="another evaluation writes here"),
    ):
        run_eval([sample("a")], scripted({}), output=tmp_path)
    assert run_eval([sample("a")], scripted({}), output=tmp_path)[0].text == "no"

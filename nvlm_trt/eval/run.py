"""Put the samples of a task to an answerer, several at a time, and score what comes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event

from nvlm_trt.errors import UserError
from nvlm_trt.eval.answer import Answer, Answerer
from nvlm_trt.eval.records import RECORDS_NAME, Record, RecordFile, record_key
from nvlm_trt.eval.scoring import score
from nvlm_trt.eval.tasks import Sample

Count = Callable[[int, int], None]
"""Called with (samples done, samples in all)."""


def run_eval(
    samples: Sequence[Sample],
    answerer: Answerer,
    *,
    identity: str = "",
    output: Path | None = None,
    concurrency: int = 1,
    progress: Count | None = None,
) -> list[Record]:
    """Answer and score samples.

    A sample that cannot be answered (an image that is refused, a prompt that is too long) scores 0 and says why. A
    fault ends the run; what was answered is kept, and the next run with the same output goes on from there.

    Args:
        samples: At least one.
        answerer: Who answers.
        identity: Digest of who answers and with which options: records of another one are not taken over.
        output: Folder of records.jsonl; None keeps no records.
        concurrency: Samples asked at a time.
        progress: Told samples done, and in all.

    Returns:
        Records in the order of the samples.

    Raises:
        UserError: there are no samples, or the folder cannot be written.
        FaultError: the answerer failed.
    """
    if not samples:
        raise UserError("there are no samples to evaluate")
    if output is None:
        return _run(samples, answerer, identity, None, concurrency, progress)
    with RecordFile(output / RECORDS_NAME) as file:
        return _run(samples, answerer, identity, file, concurrency, progress)


def _run(
    samples: Sequence[Sample],
    answerer: Answerer,
    identity: str,
    file: RecordFile | None,
    concurrency: int,
    progress: Count | None,
) -> list[Record]:
    asker = _Asker(answerer, identity, {} if file is None else file.earlier)
    records: dict[int, Record] = {}
    fault: Exception | None = None
    with ThreadPoolExecutor(max_workers=concurrency) as pool:
        try:
            places = {pool.submit(asker, sample): place for place, sample in enumerate(samples)}
            for future in as_completed(places):
                error = future.exception()
                if isinstance(error, Exception):
                    fault = fault or error
                elif outcome := future.result():
                    record, new = outcome
                    if new and file is not None:
                        file.append(record)
                    records[places[future]] = record
                    if progress is not None:
                        progress(len(records), len(samples))
        finally:
            asker.stop()  # where this thread is interrupted, too
    if fault is not None:
        raise fault
    return [records[place] for place in range(len(samples))]


class _Asker:
    """Gets the record of a sample, on any thread, until one of them meets a fault."""

    def __init__(self, answerer: Answerer, identity: str, earlier: Mapping[str, Record]) -> None:
        self._answerer, self._identity, self._earlier = answerer, identity, earlier
        self._stopped = Event()

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()

    def __call__(self, sample: Sample) -> tuple[Record, bool] | None:
        """The record, and whether it is new; None after a stop."""
        if self._stopped.is_set():
            return None
        key = record_key(self._identity, sample)
        if known := self._earlier.get(key):
            return _judged(sample, key, Answer(known.text, known.output_tokens, known.seconds)), False
        try:
            return _judged(sample, key, self._answerer.answer(sample)), True
        except UserError as error:
            refused = Record(
                sample.id, key, sample.category, sample.question, sample.answers, "", 0.0, error=str(error)
            )
            return refused, True
        except BaseException:
            self.stop()
            raise


def _judged(sample: Sample, key: str, answer: Answer) -> Record:
    return Record(
        id=sample.id,
        key=key,
        category=sample.category,
        question=sample.question,
        answers=sample.answers,
        text=answer.text,
        score=score(sample, answer.text),
        output_tokens=answer.output_tokens,
        seconds=answer.seconds,
    )

"""The files of a report: report.json after every round, records of answers, report.md and plots at the end."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from nvlm_trt.bench.report import Report
from nvlm_trt.bench.show.markdown import as_markdown
from nvlm_trt.bench.show.plots import draw
from nvlm_trt.durable import write_atomic
from nvlm_trt.errors import UserError

JSON_NAME = "report.json"
MARKDOWN_NAME = "report.md"
ANSWERS_NAME = "answers"


def default_folder() -> Path:
    """Where a report goes that nobody gave a place to: a folder of its own."""
    return Path("engines") / "bench" / datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


class ReportFolder:
    """Where a report is written, file by file, each in one piece.

    Args:
        path: The folder; made now, so that what is wrong with it is found before anything is measured.

    Raises:
        UserError: it cannot be made or written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            probe = path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError("the report cannot be written there", seen=f"{path} ({error.strerror})") from None

    @property
    def answers(self) -> Path:
        """Where records of answers go."""
        return self.path / ANSWERS_NAME

    def save(self, report: Report) -> None:
        """Write report.json."""
        write_atomic(self.path / JSON_NAME, report.encoded())

    def finish(self, report: Report, *, plots: bool) -> list[str]:
        """Write everything.

        Returns:
            Names of the plots.
        """
        self.save(report)
        pictures = draw(report) if plots else {}
        for name, data in pictures.items():
            write_atomic(self.path / name, data)
        write_atomic(self.path / MARKDOWN_NAME, as_markdown(report, list(pictures)).encode())
        return list(pictures)

"""A pipeline of three toy stages: numbers -> squares -> total, reading a toy checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nvlm_trt.pipeline.manifest import Manifest, load_manifest
from nvlm_trt.pipeline.plan import Selection, select
from nvlm_trt.pipeline.progress import Silent
from nvlm_trt.pipeline.runner import Job, Runner
from nvlm_trt.pipeline.stage import Estimate, Stage, StageContext


class ToyBuild:
    """Builds the toy pipeline and counts which stages really ran."""

    def __init__(self, folder: Path) -> None:
        self.engine = folder / "engine"
        self.checkpoint = folder / "checkpoint"
        self.engine.mkdir()
        self.checkpoint.mkdir()
        (self.checkpoint / "model.safetensors").write_bytes(b"\x01\x02\x03")
        self.power = 2
        self.ran: list[str] = []
        self.before_stage: Callable[[StageContext], None] = lambda _context: None
        self.after_stage: Callable[[], None] = lambda: None
        self.lacks: dict[str, str] = {}
        self.place = "squares.txt"
        self.without_total = False

    def stages(self) -> tuple[Stage, ...]:
        def numbers(context: StageContext) -> None:
            self.ran.append("numbers")
            self.before_stage(context)
            folder = context.out / "numbers"
            folder.mkdir()
            for index, byte in enumerate((self.checkpoint / "model.safetensors").read_bytes()):
                (folder / f"{index}.txt").write_text(str(byte))

        def squares(context: StageContext) -> None:
            self.ran.append("squares")
            self.before_stage(context)
            values = [int(path.read_text()) for path in sorted((context.engine / "numbers").iterdir())]
            (context.out / self.place).write_text(" ".join(str(value**self.power) for value in values))
            self.after_stage()

        def total(context: StageContext) -> None:
            self.ran.append("total")
            self.before_stage(context)
            values = (context.engine / self.place).read_text().split()
            (context.out / "total.txt").write_text(str(sum(map(int, values))))

        code = ("nvlm_trt.progress",)
        stages = (
            Stage(
                "numbers",
                (),
                ("numbers",),
                {},
                code,
                ("numpy",),
                numbers,
                lambda: Estimate(100, 10),
                reads_checkpoint=True,
            ),
            Stage(
                "squares",
                ("numbers",),
                (self.place,),
                {"power": self.power},
                code,
                (),
                squares,
                lambda: Estimate(50, 20),
            ),
            Stage("total", ("squares",), ("total.txt",), {}, code, ("psutil",), total, lacks=self.lacks.get("total")),
        )
        return stages[:2] if self.without_total else stages

    def run(self, *, until: str | None = None, redo_from: str | None = None, force: bool = False) -> Manifest:
        """Run the build; `ran` then holds the stages that ran in this call."""
        self.ran.clear()
        plan = self.stages()
        chosen, forced = select(plan, Selection(until, redo_from, force))
        job = Job(self.engine, plan, chosen, self.checkpoint, ("nvlm-trt", "build", "toy.yaml"), forced)
        return Runner(job, load_manifest(self.engine), Silent()).run()

    @property
    def total(self) -> int:
        return int((self.engine / "total.txt").read_text())


@pytest.fixture
def toy(tmp_path: Path) -> ToyBuild:
    return ToyBuild(tmp_path)

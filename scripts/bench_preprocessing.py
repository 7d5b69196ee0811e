"""How long it takes to make tiles of a JPEG: the way of plain Pillow, and the project's, in turns.

    python scripts/bench_preprocessing.py [--image FILE] [--rounds 15] [--json FILE]

Without --image the picture is a mosaic of scikit-image's photographs at their own resolution, 4032 x 3024 pixels, saved
with quality 90. The ways:

    Pillow            decode, two resizes, cut, stack
    library           `read_image` and `tile_image`, as in the process of a command
    server            the same with the memory of images kept, as in the server's model `preprocessing`
    Pillow, several   four images, a thread for each core
    server, several   the same, as a request with four images has it

Each way has a process of its own, on one core or two (by affinity), with as many threads: what memory costs depends on
what a process did before. All must give the same bytes. Times are medians in milliseconds for one image; ratios are
medians of the rounds' ratios to Pillow on one core. CPU time tells more than wall time where a machine has other work.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import skimage.data
from PIL import Image, ImageOps

from nvlm_trt.model.image import DEFAULT_LIMITS, read_image
from nvlm_trt.model.pixels import keep_image_memory
from nvlm_trt.model.resize_kernel import kernel_status
from nvlm_trt.model.tiling import TileGrid, cut_tiles, plan_grid

PHOTOGRAPHS = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png", "ihc.png")
SIZE = (4032, 3024)
TILE = 448
MAX_TILES = 6
IMAGES = 4
WAYS = ("Pillow", "library", "server", "Pillow, several", "server, several")

Tiles = npt.NDArray[np.uint8]
Step = Callable[[str], None]
"""Notes the end of a step by its name."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Milliseconds for one image, and the ratio to Pillow's on one core; least CPU milliseconds of each step."""

    way: str
    cores: int
    wall_ms: float
    cpu_ms: float
    least_cpu_ms: float
    wall_ratio: float
    cpu_ratio: float
    steps: dict[str, float]


def mosaic(width: int, height: int) -> Image.Image:
    """Photographs side by side, each at its own resolution, so that the file has a photograph's detail."""
    folder = Path(skimage.data.__file__).parent
    photographs = [Image.open(folder / name).convert("RGB") for name in PHOTOGRAPHS]
    whole = Image.new("RGB", (width, height))
    top, number = 0, 0
    while top < height:
        left, row_height = 0, height
        while left < width:
            photograph = photographs[number % len(photographs)]
            whole.paste(photograph, (left, top))
            left, row_height, number = left + photograph.width, min(row_height, photograph.height), number + 1
        top += row_height
    return whole


def encoded(image: Image.Image) -> bytes:
    """A JPEG file."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def grid_of(image: Image.Image) -> TileGrid:
    """The grid that the model takes for an image."""
    return plan_grid(*image.size, max_tiles=MAX_TILES, tile_size=TILE)


def with_pillow(data: bytes, step: Step) -> Tiles:
    """All of it by Pillow and numpy."""
    file = Image.open(io.BytesIO(data))
    file.load()
    ImageOps.exif_transpose(file, in_place=True)
    image = file if file.mode == "RGB" else file.convert("RGB")
    step("decode")
    grid = grid_of(image)
    whole = image.resize((grid.columns * TILE, grid.rows * TILE), Image.Resampling.BICUBIC)
    step("resize to the grid")
    split = np.asarray(whole).reshape(grid.rows, TILE, grid.columns, TILE, 3).swapaxes(1, 2).reshape(-1, TILE, TILE, 3)
    parts = [split]
    if grid.thumbnail:
        parts.append(np.asarray(image.resize((TILE, TILE), Image.Resampling.BICUBIC))[np.newaxis])
        step("resize to the thumbnail")
    tiles = np.ascontiguousarray(np.concatenate(parts))
    step("cut and stack")
    return tiles


def with_the_project(data: bytes, step: Step, pool: Executor | None = None) -> Tiles:
    """As `nvlm_trt` does it."""
    image = read_image(data)
    step("check and decode")
    tiles = cut_tiles(image, grid_of(image), TILE, pool)
    step("resize and cut")
    return tiles


def run_way(way: str, data: bytes, pool: Executor | None) -> tuple[list[Tiles], dict[str, float]]:
    """The tiles of a way's images; CPU milliseconds of its steps where it has one image."""
    begun, steps = time.process_time(), {}

    def step(name: str) -> None:
        nonlocal begun
        now = time.process_time()
        steps[name], begun = (now - begun) * 1e3, now

    if way == "Pillow":
        return [with_pillow(data, step)], steps
    if not way.endswith("several"):
        return [with_the_project(data, step, pool)], steps
    cut = with_pillow if way.startswith("Pillow") else with_the_project
    files = [data] * IMAGES
    many = pool.map if pool else map
    return list(many(lambda file: cut(file, lambda name: None), files)), {}


def work(way: str, cores: int, file: Path) -> None:
    """A way's process: a line to standard input is a run, a line from standard output is what it took, as JSON."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    if way.startswith("server"):
        keep_image_memory(cores, DEFAULT_LIMITS.max_pixels)
    data = file.read_bytes()
    pool = ThreadPoolExecutor(cores) if cores > 1 else None
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        tiles, steps = run_way(way, data, pool)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        digests = {hashlib.sha256(one.tobytes()).hexdigest() for one in tiles}
        took = {"wall": wall * 1e3 / len(tiles), "cpu": cpu * 1e3 / len(tiles), "steps": steps}
        print(json.dumps({**took, "tiles": len(tiles[0]), "digests": sorted(digests)}), flush=True)


class Worker:
    """A way in its process."""

    def __init__(self, way: str, cores: int, file: Path) -> None:
        self.way, self.cores, self.runs = way, cores, list[dict[str, Any]]()
        command = [sys.executable, __file__, "--work", way, str(cores), str(file)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate()

    def run(self) -> dict[str, Any]:
        """One run; the process answers when it is done."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert isinstance(answer, dict)
        return answer

    def figures(self, base: Worker) -> Figures:
        """What its runs say, beside those of another way."""
        pairs = list(zip(self.runs, base.runs, strict=True))
        return Figures(
            self.way,
            self.cores,
            wall_ms=statistics.median(run["wall"] for run in self.runs),
            cpu_ms=statistics.median(run["cpu"] for run in self.runs),
            least_cpu_ms=min(run["cpu"] for run in self.runs),
            wall_ratio=statistics.median(mine["wall"] / plain["wall"] for mine, plain in pairs),
            cpu_ratio=statistics.median(mine["cpu"] / plain["cpu"] for mine, plain in pairs),
            steps={name: min(run["steps"][name] for run in self.runs) for name in self.runs[0]["steps"]},
        )


def compare(file: Path, rounds: int) -> tuple[list[Figures], int]:
    """Run all ways in turns, after two runs of each that warm it up; also how many tiles the image has.

    Raises:
        SystemExit: a way gives other tiles.
    """
    counts = [count for count in (1, 2) if count <= len(os.sched_getaffinity(0))]
    subjects = [(way, cores) for way in WAYS for cores in counts if way != "Pillow" or cores == 1]
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(way, cores, file)) for way, cores in subjects]
        expected = workers[0].run()
        for worker in workers:
            for _ in range(2):
                if worker.run()["digests"] != expected["digests"]:
                    sys.exit(f"{worker.way} on {worker.cores} cores gives other tiles")
        for _ in range(rounds):
            for worker in workers:
                worker.runs.append(worker.run())
        return [worker.figures(workers[0]) for worker in workers], expected["tiles"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Tiles of a JPEG: plain Pillow's way and the project's.")
    parser.add_argument("--image", type=Path, help="a JPEG file in place of the mosaic")
    parser.add_argument("--size", type=int, nargs=2, default=SIZE, metavar=("WIDTH", "HEIGHT"), help="of the mosaic")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work:
        way, cores, path = options.work
        return work(way, int(cores), Path(path))
    data = options.image.read_bytes() if options.image else encoded(mosaic(*options.size))
    kernel, load_before = kernel_status(), os.getloadavg()
    with tempfile.NamedTemporaryFile(suffix=".jpg") as file:
        file.write(data)
        file.flush()
        figures, tiles = compare(Path(file.name), options.rounds)
    width, height = Image.open(io.BytesIO(data)).size
    report = {
        "image": {"width": width, "height": height, "bytes": len(data), "tiles": tiles},
        "kernel": "used" if kernel.kernel else f"not used: {kernel.reason}",
        "versions": {"pillow": PIL.__version__, "numpy": np.__version__, "python": platform.python_version()},
        "load": {"before": load_before, "after": os.getloadavg()},
        "rounds": options.rounds,
        "ways": [asdict(row) for row in figures],
    }
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def show(report: dict[str, Any]) -> None:
    """Print the figures as Markdown."""
    image, load = report["image"], report["load"]
    print(
        f"{image['width']} x {image['height']}, {image['bytes'] / 1e6:.1f} MB, {image['tiles']} tiles; "
        f"Pillow {report['versions']['pillow']}, kernel {report['kernel']}; {report['rounds']} rounds; "
        f"load {load['before'][0]:.1f} to {load['after'][0]:.1f}\n"
    )
    print("| way | cores | wall ms an image | CPU ms | least CPU ms | wall ratio | CPU ratio |")
    print("|---|---|---|---|---|---|---|")
    for row in report["ways"]:
        times = " | ".join(f"{row[name]:.1f}" for name in ("wall_ms", "cpu_ms", "least_cpu_ms"))
        print(f"| {row['way']} | {row['cores']} | {times} | {row['wall_ratio']:.2f} | {row['cpu_ratio']:.2f} |")
    print("\n| step, one core | least CPU ms |\n|---|---|")
    for row in report["ways"]:
        for name, milliseconds in row["steps"].items() if row["cores"] == 1 else ():
            print(f"| {row['way']}: {name} | {milliseconds:.1f} |")


if __name__ == "__main__":
    main()

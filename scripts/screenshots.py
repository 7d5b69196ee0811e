"""Renew the pictures of the web page in docs/screenshots: ``python scripts/screenshots.py [ENGINE_DIR]``.

Starts the server of the default recipe's engine (``scripts/build_engines.sh`` builds it), asks about
``examples/cup.png`` in a headless Chromium (``apt-get install chromium``, or its path in $CHROMIUM), and keeps what is
seen as PNG files of 256 colours. Ends with 1 where an answer is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from nvlm_trt.host.ports import Ports
from nvlm_trt.host.server import TritonServer

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "examples" / "cup.png"
ANSWERS = {
    "What is the tiny number?": "395",
    "Which tile holds the tiny number?": "tile 4",
    "What colour is the star?": "red",
}


@dataclass(frozen=True, slots=True)
class Shot:
    """A picture of the page: its name, the window, the colours."""

    name: str
    width: int
    height: int
    scheme: str
    whole: bool = False


SHOTS = (
    Shot("light", 1280, 940, "light"),
    Shot("dark", 1280, 940, "dark"),
    Shot("phone", 390, 844, "light", whole=True),
)


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine_dir", type=Path, nargs="?", default=ROOT / "engines" / "nvlm-d-mini-cpu")
    parser.add_argument("--url", help="a server that runs already, such as http://localhost:8000")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "screenshots")
    asked = parser.parse_args()
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        sys.exit("there is no Chromium; apt-get install chromium, or set CHROMIUM to one")
    asked.out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        url = asked.url or _served(held, asked.engine_dir)
        driver = held.enter_context(sync_playwright())
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for shot in SHOTS:
            path = asked.out / f"{shot.name}.png"
            _save(_taken(browser, url, shot), path)
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
        browser.close()


def _served(held: contextlib.ExitStack, engine_dir: Path) -> str:
    """The address of a server that is stopped in the end."""
    return f"http://{held.enter_context(TritonServer(engine_dir, ports=Ports(0, 0, 0))).http_url}"


def _taken(browser: Any, address: str, shot: Shot) -> bytes:
    """A conversation, and the page after it, with the tile lit that the answer came from."""
    size = {"width": shot.width, "height": shot.height}
    page = browser.new_page(viewport=size, color_scheme=shot.scheme, reduced_motion="reduce")
    page.goto(address)
    page.get_by_text("Add a picture to see its tiles.").wait_for()
    page.set_input_files("#files", str(PICTURE))
    page.locator(".tile").first.wait_for()
    for number, (question, right) in enumerate(ANSWERS.items()):
        page.fill("#question", question)
        page.keyboard.press("Enter")
        turn = page.locator(".turn").nth(number)
        turn.locator(".turn-tools button").first.wait_for()
        answer = turn.locator(".answered .text").text_content()
        if answer != right:
            refused = " ".join(turn.locator(".refusal p").all_text_contents())
            sys.exit(f"{question} is answered by {answer!r}; expected: {right!r} {refused}".rstrip())
    length = turn.locator(".answered .figures").text_content().partition(" + ")[0].split()[-1]
    page.get_by_text(f"{length} prompt tokens").wait_for()  # what is seen is of the last question
    page.locator(".tile").nth(3).click()
    page.locator(".seen").evaluate("one => { one.scrollTop = 0; }")
    page.mouse.move(1, 1)
    taken: bytes = page.screenshot(full_page=shot.whole)
    page.close()
    return taken


def _save(png: bytes, path: Path) -> None:
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()

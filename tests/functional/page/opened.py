"""The web page, opened in a headless browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import pytest

CHROMIUM: Final = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
COLOURS: Final = ["#d03030", "#30a030", "#3050d0", "#d0c030", "#a030c0", "#30b0b0"]
BY: Final = "\N{MULTIPLICATION SIGN}"

needs_chromium: Final = pytest.mark.skipif(
    CHROMIUM is None or find_spec("playwright") is None,
    reason="needs Playwright (extra dev), and Chromium: apt-get install chromium, or $CHROMIUM",
)

GIVE: Final = """([kind, bytes, name, texts]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], name, {type: 'image/jpeg'}));
  for (const [type, text] of Object.entries(texts)) data.setData(type, text);
  const event = kind === 'paste' ? new ClipboardEvent(kind, {clipboardData: data, bubbles: true, cancelable: true})
    : new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true});
  document.body.dispatchEvent(event);
  return event.defaultPrevented;
}"""


@dataclass
class Opened:
    """The page of a server in a browser of its own.

    Attributes:
        page: Playwright's page.
        asked: Bodies that were sent, by path.
        faults: What the browser complained of: scripts that failed, things that its policy forbids.
        expected_faults: Words of those that a test means to cause.
    """

    page: Any
    address: str
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    expected_faults: tuple[str, ...] = ()

    def add(self, *files: Path) -> None:
        """Add pictures, and wait until they are shown with their tiles."""
        before = self.page.locator(".image").count()
        self.page.set_input_files("#files", [str(file) for file in files])
        self.page.wait_for_function(
            "count => document.querySelectorAll('.image').length === count", arg=before + len(files)
        )

    def ask(self, question: str) -> Any:
        """Ask, and wait for the end of the answer; the turn."""
        before = self.page.locator(".turn").count()
        self.page.fill("#question", question)
        self.page.keyboard.press("Enter")
        turn = self.page.locator(".turn").nth(before)
        turn.locator(".turn-tools button").first.wait_for()
        return turn

    def set(self, **fields: str) -> None:
        """Set fields of the settings, which are then open."""
        if self.page.is_hidden("#settings"):
            self.page.click("#settings-toggle")
        for name, value in fields.items():
            field_ = self.page.locator(f"#{name}")
            if name == "max_tiles":
                field_.select_option(value)
            else:
                field_.fill(value)

    def give(self, kind: str, file: Path, name: str, **texts: str) -> bool:
        """Paste or drop a picture by this name, texts of "plain" or "html" beside it; whether the page takes it."""
        given = [kind, list(file.read_bytes()), name, {f"text/{form}": text for form, text in texts.items()}]
        return bool(self.page.evaluate(GIVE, given))

    def bodies(self, path: str) -> list[dict[str, Any]]:
        """The bodies that were posted to a path."""
        return [body for to, body in self.asked if to == path]

    def stored(self, kind: str) -> dict[str, str]:
        """What the browser keeps."""
        return dict(self.page.evaluate(f"() => ({{...{kind}}})"))


Open = Callable[..., Opened]


def middle_colour(page: Any, selector: str) -> str:
    """The colour in the middle of a canvas."""
    pixel = page.eval_on_selector(
        selector, "c => [...c.getContext('2d').getImageData(c.width / 2, c.height / 2, 1, 1).data.slice(0, 3)]"
    )
    return "#" + "".join(f"{value:02x}" for value in pixel)

"""The request that gave an answer, as a command and as a program."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from PIL import Image

from .opened import Open, Opened, needs_chromium

HARD: Final = 'It\'s "what"?\n%s $HOME `id` \\n é 日本'

pytestmark = needs_chromium


def test_curl_and_python_repeat_the_request(opened: Opened, colours: Path, square: Path, tmp_path: Path) -> None:
    """With pictures read from files of their names, and with pictures in the text, where there are no files."""
    page = opened.page
    opened.add(colours, square)
    opened.set(max_completion_tokens="12")
    opened.set(max_tiles="3")
    page.fill("#question", HARD)
    page.keyboard.press("Enter")
    page.locator(".turn-tools button").first.wait_for()
    answer = page.text_content(".answered .text")
    (sent,) = opened.bodies("/v1/chat/completions")
    assert sent["messages"][0]["content"][0]["text"] == HARD
    with_files, without = tmp_path / "with files", tmp_path / "without"
    for folder in (with_files, without):
        folder.mkdir()
    for file in (colours, square):
        shutil.copy(file, with_files)
    for name, command in {"curl": ["bash"], "Python": [sys.executable, "-W", "error"]}.items():
        page.get_by_role("button", name=name, exact=True).click()
        for choice, folder in (("files", with_files), ("data", without)):
            page.check(f"#code [name=inside][value={choice}]")
            code = page.text_content("#code-text").encode()
            shown = subprocess.run(command, input=code, cwd=folder, capture_output=True, check=True).stdout.decode()
            assert (joined(shown) if name == "curl" else shown.removesuffix("\n")) == answer
        page.get_by_role("button", name="Close").click()


def test_pictures_of_one_name_are_told_apart(opened: Opened, square: Path, tmp_path: Path) -> None:
    """Browsers give all that is pasted one name; the same picture again is read from the same file."""
    other = tmp_path / "other.jpg"
    Image.new("RGB", (90, 90), "navy").save(other)
    opened.set(max_completion_tokens="4")
    page = opened.page
    opened.give("paste", square, "image.jpg")
    page.locator(".image").wait_for()
    opened.ask("What is it?")
    opened.give("paste", other, "image.jpg")
    opened.give("paste", square, "image.jpg")
    page.locator(".image >> nth=2").wait_for()
    assert page.locator(".chip b").all_text_contents() == ["image-2.jpg", "image.jpg"]
    turn = opened.ask("And these?")
    for language in ("curl", "Python"):
        turn.get_by_role("button", name=language, exact=True).click()
        page.check("#code [name=inside][value=files]")
        files = re.findall(r"image[-\d]*\.jpg", page.text_content("#code-text"))
        assert files == ["image.jpg", "image-2.jpg", "image.jpg"]
        assert page.text_content("#code-note").endswith("Save under these names first: image-2.jpg.")
        page.check("#code [name=inside][value=data]")
        assert page.text_content("#code-note") == ""
        page.get_by_role("button", name="Close").click()


def joined(events: str) -> str:
    """The text of a stream as curl shows it."""
    whole = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: {")]
    return "".join(choice["delta"].get("content", "") for event in whole for choice in event["choices"])


def test_code_is_copied(open_page: Open) -> None:
    opened = open_page(permissions=["clipboard-read", "clipboard-write"])
    opened.ask("Hello")
    opened.page.get_by_role("button", name="curl", exact=True).click()
    opened.page.click("#code-copy")
    opened.page.get_by_text("Copied").wait_for()
    assert opened.page.evaluate("() => navigator.clipboard.readText()") == opened.page.text_content("#code-text")

"""The request that gave an answer, as a command and as a program."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

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

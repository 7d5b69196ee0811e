"""The page's files: complete, nothing from elsewhere, asked about by their tags, kept to themselves."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvlm_trt.gateway.settings import Limits
from nvlm_trt.gateway.web import FOLDER

from .door import Door

FILES = sorted(path.name for path in FOLDER.iterdir())
ADDRESS = re.compile(r"https?://(?!www\.w3\.org/2000/svg)[\w.$]+")


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    with Door(Limits()) as one:
        yield one


def test_every_file_is_served_with_its_type(door: Door) -> None:
    kinds = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    for name in FILES:
        answer = door.call("/" if name == "index.html" else f"/page/{name}")
        assert answer.status == 200
        assert answer.data == (FOLDER / name).read_bytes()
        assert answer.headers["content-type"].split(";")[0] == kinds[name.rpartition(".")[2]]


def test_nothing_else_of_the_disk_is(door: Door) -> None:
    for path in ("/page/", "/page/index.html", "/page/web.py", "/page/../web.py", "/page/..%2fweb.py", "/page/a/b"):
        assert door.call(path).status == 404


def test_the_page_may_load_and_run_its_own_files_only(door: Door) -> None:
    headers = door.call("/").headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert policy["img-src"] == "'self' data: blob:"
    assert policy["frame-ancestors"] == policy["object-src"] == policy["base-uri"] == "'none'"
    assert "script-src" not in policy
    assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")


def test_the_files_name_no_other_place_and_hold_no_script_or_style_within_the_html() -> None:
    for name in FILES:
        text = (FOLDER / name).read_text()
        assert not ADDRESS.findall(text), name
    page = (FOLDER / "index.html").read_text()
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]*\ssrc=)", page)


def test_a_browser_that_has_a_file_gets_it_again_only_when_it_changed(door: Door) -> None:
    first = door.call("/page/style.css")
    assert first.headers["cache-control"] == "no-cache"
    again = door.call("/page/style.css", headers={"If-None-Match": f'"other", W/{first.headers["etag"]}'})
    assert (again.status, again.data, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert door.call("/page/style.css", headers={"If-None-Match": '"other"'}).status == 200


def test_a_head_request_has_the_headers_alone(door: Door) -> None:
    answer = door.call("/", method="HEAD")
    assert (answer.status, answer.data) == (200, b"")
    assert int(answer.headers["content-length"]) == len((FOLDER / "index.html").read_bytes())


def test_nothing_is_posted_to_the_page(door: Door) -> None:
    assert [door.call(path, "x").status for path in ("/", "/page/style.css")] == [405, 405]


def test_a_wheel_holds_the_page(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[2])
    (wheel,) = tmp_path.glob("*.whl")
    held = {Path(name).name for name in zipfile.ZipFile(wheel).namelist() if "/gateway/page/" in name}
    assert held == set(FILES)


TEXTS = {
    "text": ("ground", "surface", "sunken", "wash", "danger-wash"),
    "quiet": ("ground", "surface", "sunken", "danger-wash", "whole-wash", "wash"),
    "accent": ("surface", "wash"),
    "on-accent": ("accent",),
    "whole": ("surface", "whole-wash"),
    "danger": ("surface",),
}
"""Colours of text, and the grounds that they are on."""

SHAPES = {
    "focus": ("ground", "surface"),
    "edge": ("ground", "surface"),
    "accent": ("ground", "surface"),
    "whole": ("ground",),
    "danger": ("surface",),
}
"""Colours of borders and areas that mean something."""


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb`` (WCAG 2.2)."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_the_contrast_of_level_aa(scheme: str) -> None:
    style = (FOLDER / "style.css").read_text()
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\);", style)
    colours = {name: light if scheme == "light" else dark for name, light, dark in pairs}
    assert colours.keys() >= {"text", "ground"}
    for least, table in ((4.5, TEXTS), (3.0, SHAPES)):
        for front, grounds in table.items():
            for ground in grounds:
                low, high = sorted(luminance(colours[name]) for name in (front, ground))
                assert (high + 0.05) / (low + 0.05) >= least, (front, ground)


def test_every_colour_is_one_of_those_that_are_measured_or_lies_on_a_picture() -> None:
    style = (FOLDER / "style.css").read_text()
    elsewhere = re.sub(r"--[\w-]+: light-dark\(.*\);", "", style)
    assert set(re.findall(r"#[0-9a-fA-F]{3,8}\b", elsewhere)) <= {"#ffffff"}

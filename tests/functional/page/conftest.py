"""The page of the real server in a headless browser, and pictures to ask it about."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import openai
import pytest
from PIL import Image

from nvlm_trt.gateway.settings import GatewaySettings, Limits
from nvlm_trt.host.server import TritonServer
from nvlm_trt.recipe import BuildRecipe

from .another_gateway import KEY, another_gateway
from .opened import CHROMIUM, COLOURS, Open, Opened

FLAGS: Final = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-extensions"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright  # the tests are skipped where it is not

    assert CHROMIUM is not None
    if subprocess.run([CHROMIUM, "--version"], capture_output=True).returncode:
        pytest.skip(f"{CHROMIUM} does not run")
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any, server: TritonServer) -> Iterator[Open]:
    """Opens the page; whatever a browser complains of fails the test."""
    contexts, opened = [], []

    def open_one(address: str | None = None, *, width: int = 1280, height: int = 800, **options: Any) -> Opened:
        context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce", **options)
        context.set_default_timeout(60_000)  # a loaded machine
        one = Opened(context.new_page(), f"http://{address or server.http_url}")
        contexts.append(context)
        opened.append(one)

        def note(request: Any) -> None:
            if not request.url.startswith((one.address + "/", "data:", "blob:")):
                one.elsewhere.append(request.url)
            if request.method == "POST":
                one.asked.append((request.url.removeprefix(one.address), json.loads(request.post_data)))

        def complain(message: Any) -> None:
            if message.type in ("error", "warning"):
                one.faults.append(message.text)

        one.page.on("request", note)
        one.page.on("pageerror", lambda error: one.faults.append(str(error)))
        one.page.on("console", complain)
        one.page.goto(one.address)
        return one

    yield open_one
    for context in contexts:
        context.close()
    for one in opened:
        assert one.elsewhere == []
        assert [fault for fault in one.faults if not any(word in fault for word in one.expected_faults)] == []


@pytest.fixture
def opened(open_page: Open) -> Opened:
    one = open_page()
    one.page.get_by_text("Add a picture to see its tiles.").wait_for()
    return one


@pytest.fixture(scope="module")
def ask(server: TritonServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://{server.http_url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of 3 x 2 tiles, each of one colour."""
    image = Image.new("RGB", (360, 240))
    for place, colour in enumerate(COLOURS):
        image.paste(colour, (place % 3 * 120, place // 3 * 120, place % 3 * 120 + 120, place // 3 * 120 + 120))
    path = tmp_path_factory.mktemp("pictures") / "six colours.png"
    image.save(path)
    return path


@pytest.fixture(scope="module")
def square(colours: Path) -> Path:
    """A picture of one tile."""
    path = colours.with_name("it's square.jpg")
    Image.new("RGB", (90, 90), "teal").save(path)
    return path


@pytest.fixture
def guarded(server: TritonServer, engine_dir: Path, recipe: BuildRecipe) -> Iterator[str]:
    """A gateway that asks for keys."""
    with another_gateway(server, engine_dir, GatewaySettings(Limits.of(recipe), api_keys=(KEY,))) as address:
        yield address

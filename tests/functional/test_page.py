"""The web page in a headless browser, before the real server. Skips, saying so, without Playwright or Chromium."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import openai
import pytest
import yaml
from PIL import Image

from nvlm_trt.gateway.app import Served
from nvlm_trt.gateway.server import Gateway
from nvlm_trt.gateway.settings import GatewaySettings, Limits, Upstream
from nvlm_trt.recipe import BuildRecipe
from nvlm_trt.serving.host.server import TritonServer

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright (extra dev)")

CHROMIUM: Final = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS: Final = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-extensions"]
KEY: Final = "a-key-of-the-tests-of-the-page"
COLOURS: Final = ["#d03030", "#30a030", "#3050d0", "#d0c030", "#a030c0", "#30b0b0"]
BY, TO = "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"
HARD: Final = 'It\'s "what"?\n%s $HOME `id` \\n é 日本'

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium, or $CHROMIUM")


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

    def bodies(self, path: str) -> list[dict[str, Any]]:
        """The bodies that were posted to a path."""
        return [body for to, body in self.asked if to == path]

    def stored(self, kind: str) -> dict[str, str]:
        """What the browser keeps."""
        return dict(self.page.evaluate(f"() => ({{...{kind}}})"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    assert CHROMIUM is not None
    if subprocess.run([CHROMIUM, "--version"], capture_output=True).returncode:
        pytest.skip(f"{CHROMIUM} does not run")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


Open = Callable[..., Opened]


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


def middle_colour(page: Any, selector: str) -> str:
    """The colour in the middle of a canvas."""
    pixel = page.eval_on_selector(
        selector, "c => [...c.getContext('2d').getImageData(c.width / 2, c.height / 2, 1, 1).data.slice(0, 3)]"
    )
    return "#" + "".join(f"{value:02x}" for value in pixel)


def test_a_picture_is_shown_with_its_grid_tiles_tags_and_token_ranges(opened: Opened, colours: Path) -> None:
    opened.add(colours)
    page = opened.page
    assert f"360 {BY} 240 pixels  ·  3 {BY} 2 tiles and a thumbnail  ·  112 tokens" in page.text_content(".image")
    (asked, *_) = opened.bodies("/v1/tiles")
    answer = page.request.post(f"{opened.address}/v1/tiles", data=asked).json()
    tiles = answer["images"][0]["tiles"]
    assert page.locator(".tile .tag").all_text_contents() == [tile["tag"] for tile in tiles]
    shown = [tuple(map(int, text.split(f" {TO} "))) for text in page.locator(".tile .range").all_text_contents()]
    assert shown == [(first, end - 1) for first, end in (tile["tokens"] for tile in tiles)]
    assert f"{answer['prompt_tokens']} prompt tokens" in page.text_content("#tokens")


def test_every_tile_shows_its_part_of_the_picture(opened: Opened, colours: Path) -> None:
    opened.add(colours)
    found = [middle_colour(opened.page, f".tile:nth-child({place}) canvas") for place in range(1, 7)]
    assert found == COLOURS
    frame = opened.page.locator(".frame").bounding_box()
    for place in range(6):
        cell = opened.page.locator(".cell").nth(place).bounding_box()
        assert cell["x"] - frame["x"] == pytest.approx(place % 3 * frame["width"] / 3, abs=1)
        assert cell["y"] - frame["y"] == pytest.approx(place // 3 * frame["height"] / 2, abs=1)
        assert cell["width"] == pytest.approx(frame["width"] / 3, abs=1)


def test_a_tile_its_cell_and_its_place_in_the_prompt_light_up_together(opened: Opened, colours: Path) -> None:
    opened.add(colours)
    page = opened.page
    lit = "all => all.map(one => one.classList[0] + one.dataset.tile)"
    for selector in (".tile >> nth=4", ".cell >> nth=4", ".stretch >> nth=4"):
        page.hover(selector)
        assert sorted(page.eval_on_selector_all(".lit", lit)) == ["cell1.4", "stretch1.4", "tile1.4"]
    page.hover("h1")
    assert page.locator(".lit").count() == 0


def test_tiles_are_reached_and_told_by_the_keyboard_alone(opened: Opened, colours: Path) -> None:
    opened.add(colours)
    page = opened.page
    page.focus(".seen")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    focused = "() => document.activeElement.getAttribute('aria-label')"
    assert page.evaluate(focused).startswith("<tile_2>, row 1, column 2, tokens ")
    assert page.locator(".cell.lit").get_attribute("data-tile") == "1.1"
    page.keyboard.press("End")
    assert page.evaluate(focused).startswith("<tile_global_thumbnail>, the whole picture, tokens ")
    page.keyboard.press("Space")
    assert page.locator(".tile[aria-pressed=true]").get_attribute("data-tile") == "1.6"


def test_pictures_are_pasted_and_dropped(opened: Opened, square: Path) -> None:
    give = """([kind, bytes, name]) => {
      const data = new DataTransfer();
      data.items.add(new File([new Uint8Array(bytes)], name, {type: 'image/jpeg'}));
      const event = kind === 'paste' ? new ClipboardEvent(kind, {clipboardData: data, bubbles: true, cancelable: true})
        : new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true});
      document.body.dispatchEvent(event);
      return event.defaultPrevented;
    }"""
    content = list(square.read_bytes())
    assert opened.page.evaluate(give, ["paste", content, "pasted.jpg"])
    opened.page.evaluate(give, ["dragenter", content, "x.jpg"])
    assert opened.page.is_visible("#drop")
    assert opened.page.evaluate(give, ["drop", content, "dropped.jpg"])
    opened.page.locator(".image >> nth=1").wait_for()
    assert opened.page.locator(".chip b").all_text_contents() == ["pasted.jpg", "dropped.jpg"]
    assert opened.page.text_content("#said") == f"pasted.jpg: 1 {BY} 1 tile. dropped.jpg: 1 {BY} 1 tile"
    assert opened.page.is_hidden("#drop")


NOTE_TEXTS = """() => new MutationObserver(() => {
  shown.push(document.querySelector('.answered .text')?.textContent ?? '');
}).observe(document.getElementById('turns'), {subtree: true, childList: true, characterData: true})"""


def test_an_answer_comes_as_to_any_client_with_its_figures(opened: Opened, ask: openai.OpenAI, colours: Path) -> None:
    opened.add(colours)
    opened.set(max_completion_tokens="120")
    opened.page.evaluate(f"() => {{ window.shown = []; ({NOTE_TEXTS})(); }}")
    turn = opened.ask("What is it?")
    (body,) = opened.bodies("/v1/chat/completions")
    whole = ask.chat.completions.create(**{**body, "stream": False, "stream_options": None})
    assert turn.locator(".answered .text").text_content() == whole.choices[0].message.content
    shown = opened.page.evaluate("() => shown")
    assert all(whole.choices[0].message.content.startswith(text) for text in shown)
    assert any(text not in ("", whole.choices[0].message.content) for text in shown), "it was not seen to come"
    figures = turn.locator(".answered .figures").text_content()
    assert whole.usage is not None
    assert "TTFT " in figures
    assert f"{whole.usage.prompt_tokens} + {whole.usage.completion_tokens} tokens" in figures


def test_turns_and_pictures_add_up_to_one_conversation(
    opened: Opened, ask: openai.OpenAI, colours: Path, square: Path
) -> None:
    opened.set(max_completion_tokens="8")
    opened.add(colours)
    first = opened.ask("What is it?").locator(".answered .text").text_content()
    opened.add(square)
    second = opened.ask("And this?").locator(".answered .text").text_content()
    body = opened.bodies("/v1/chat/completions")[-1]
    texts = [
        message["content"] if isinstance(message["content"], str) else message["content"][0]["text"]
        for message in body["messages"]
    ]
    assert texts == ["What is it?", first, "And this?"]
    assert (
        ask.chat.completions.create(**{**body, "stream": False, "stream_options": None}).choices[0].message.content
        == second
    )
    assert opened.page.locator(".image h3").all_text_contents() == ["1 six colours.png", "2 it's square.jpg"]
    assert opened.page.locator(".image >> nth=1").locator(".tag").all_text_contents() == ["<tile_global_thumbnail>"]
    opened.page.click("#new")
    opened.page.get_by_text("Add a picture to see its tiles.").wait_for()
    assert opened.page.locator(".turn").count() == 0


def test_settings_are_sent_and_kept(open_page: Open, opened: Opened, colours: Path) -> None:
    page = opened.page
    opened.add(colours)
    opened.set(max_tiles="2")
    page.wait_for_function("() => document.querySelectorAll('.tile').length === 3")
    opened.set(max_completion_tokens="5", temperature="0.8", seed="7", system="Be brief.")
    opened.ask("Hello")
    body = opened.bodies("/v1/chat/completions")[0]
    sent = {name: body[name] for name in ("max_completion_tokens", "temperature", "seed", "max_tiles")}
    assert sent == {"max_completion_tokens": 5, "temperature": 0.8, "seed": 7, "max_tiles": 2}
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    page.reload()
    page.wait_for_function("() => document.getElementById('seed').value === '7'")
    opened.set(temperature="3")
    page.click("#settings-toggle")
    page.fill("#question", "Hello")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.activeElement.id === 'temperature'")
    assert len(opened.bodies("/v1/chat/completions")) == 1


AT_FIRST_TEXT = """(button) => new Promise(resolve => new MutationObserver((_, observer) => {
  if (!document.querySelector('.answered .text')?.textContent) return;
  observer.disconnect();
  document.getElementById(button).click();
  resolve();
}).observe(document.getElementById('turns'), {subtree: true, childList: true, characterData: true}))"""


def test_stopping_ends_the_answer_at_the_server_too(opened: Opened, server: TritonServer) -> None:
    page = opened.page
    page.fill("#question", "Tell me")
    page.evaluate(f"() => {{ window.stopped = ({AT_FIRST_TEXT})('stop'); }}")
    page.keyboard.press("Enter")
    page.evaluate("() => window.stopped")
    page.locator(".figures", has_text="Stopped").wait_for()
    deadline = time.monotonic() + 5
    while server.process.active_requests():
        assert time.monotonic() < deadline, "the decoding goes on"
        time.sleep(0.05)
    text = page.text_content(".answered .text")
    assert text
    assert page.locator(".turn-tools button").first.text_content() == "Try again"
    assert page.evaluate("() => document.activeElement.id") == "question"
    page.get_by_role("button", name="Try again").click()
    page.get_by_role("button", name="Ask again").wait_for()
    assert len(page.text_content(".answered .text")) > len(text)


def test_a_new_conversation_during_an_answer_can_be_asked_at_once(opened: Opened) -> None:
    page = opened.page
    page.evaluate(f"() => {{ window.came = ({AT_FIRST_TEXT})('new'); }}")
    page.fill("#question", "Tell me")
    page.keyboard.press("Enter")
    page.evaluate("() => window.came")
    page.locator("#send").wait_for()
    assert page.is_hidden("#stop")
    turn = opened.ask("Hello")
    assert not any(turn.locator(".refusal").all_text_contents())


def test_a_refusal_is_told_in_its_place_and_can_be_tried_again(opened: Opened) -> None:
    opened.expected_faults = ("400 (Bad Request)",)
    turn = opened.ask("long " * 2000)
    lines = turn.locator(".refusal p").all_text_contents()
    assert lines[0].startswith("the prompt is longer than the engine; seen: ")
    assert lines[1].startswith("Request ")
    assert turn.locator(".turn-tools button").first.text_content() == "Try again"
    assert opened.ask("Hello").locator(".refusal p").count() == 0
    assert [message["content"] for message in opened.bodies("/v1/chat/completions")[-1]["messages"]] == ["Hello"]


def test_what_the_server_would_not_take_is_told_before_it_is_sent(
    opened: Opened, square: Path, tmp_path: Path, recipe: BuildRecipe
) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    huge = tmp_path / "huge.bmp"
    with huge.open("wb") as file:
        file.truncate(recipe.image_limits.max_bytes + 1)
    long = tmp_path / "long.png"
    Image.new("1", (recipe.image_limits.max_side + 1, 2)).save(long)
    for file, sentence in {
        tmp_path / "notes.txt": "notes.txt is no picture that the server takes (text/plain); expected: JPEG, PNG,",
        tmp_path / "broken.png": "broken.png cannot be read",
        huge: "huge.bmp is too large: 33.6 MB; expected: at most 33.6 MB",
        long: f"long.png is too large: 20001 {BY} 2 pixels",
    }.items():
        opened.page.set_input_files("#files", str(file))
        opened.page.locator("#refusals", has_text=sentence).wait_for()
    assert opened.asked == []
    opened.add(*[square] * recipe.max_images)
    opened.page.set_input_files("#files", str(square))
    opened.page.get_by_text("the server takes 3 pictures in a conversation").wait_for()


READ_SLOWLY: Final = """() => {
  const read = window.createImageBitmap;
  window.createImageBitmap = async (file) => {
    await new Promise((resolve) => (window.letRead = resolve));
    return read.call(window, file);
  };
}"""


def test_a_question_is_asked_with_the_picture_that_was_being_read(opened: Opened, square: Path) -> None:
    """Not without it, and not later: until the picture is read the question stays where it is."""
    page = opened.page
    page.evaluate(READ_SLOWLY)
    opened.set(max_completion_tokens="4")
    page.set_input_files("#files", str(square))
    page.wait_for_function("() => window.letRead")
    page.fill("#question", "What is it?")
    assert page.is_disabled("#send")
    page.keyboard.press("Enter")
    page.evaluate("() => window.letRead()")
    page.locator(".image").wait_for()
    assert page.locator(".turn").count() == 0
    page.keyboard.press("Enter")
    page.locator(".turn-tools button").first.wait_for()
    (body,) = opened.bodies("/v1/chat/completions")
    assert [part["type"] for part in body["messages"][0]["content"]] == ["text", "image_url"]
    assert page.locator(".turn .thumb").count() == 1


def photograph(path: Path, width: int, height: int) -> Path:
    """A photograph that lies on its side, as it says; upright, its upper third has a colour of its own."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.effect_noise((width // 8, height // 8), 60).convert("RGB").resize((width, height))
    image.paste(COLOURS[0], (0, 0, width // 3, height))
    image.save(path, quality=92, exif=exif)
    return path


def first_tile(page: Any) -> list[int]:
    colour = middle_colour(page, ".tile:nth-child(1) canvas")
    return [int(colour[place : place + 2], 16) for place in (1, 3, 5)]


def test_a_phones_photograph_is_upright(opened: Opened, tmp_path: Path) -> None:
    """Of 12 megapixels."""
    opened.add(photograph(tmp_path / "IMG_0001.jpg", 4032, 3024))
    assert f"3,024 {BY} 4,032 pixels  ·  2 {BY} 3 tiles" in opened.page.text_content(".image")
    assert first_tile(opened.page) == pytest.approx([0xD0, 0x30, 0x30], abs=6)
    assert opened.ask("What is it?").locator(".refusal p").count() == 0


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


def test_a_screen_reader_hears_the_answer_in_few_parts(opened: Opened) -> None:
    page = opened.page
    page.evaluate(
        "() => { window.heard = []; new MutationObserver(() => heard.push(document.getElementById('said').textContent))"
        ".observe(document.getElementById('said'), {childList: true}); }"
    )
    opened.set(max_completion_tokens="200")
    began = time.monotonic()
    turn = opened.ask("Tell me")
    most = 2 + (time.monotonic() - began) / 3
    heard = page.evaluate("() => heard")
    assert heard[-1].endswith("End of the answer.")
    assert len(heard) <= most
    said = " ".join(heard).removesuffix("End of the answer.")  # parts are of whole words
    assert said.split() == turn.locator(".answered .text").text_content().split()


def test_everything_is_done_with_the_keyboard(opened: Opened, square: Path) -> None:
    """From the top of the page: the link to the question, its text, the code, and back."""
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.textContent") == "Skip to the question"
    page.keyboard.press("Enter")
    page.keyboard.type("Hello")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("there")
    page.keyboard.press("Enter")
    page.locator(".turn-tools button").first.wait_for()
    assert opened.bodies("/v1/chat/completions")[0]["messages"][0]["content"] == "Hello\nthere"
    for _ in range(2):
        page.keyboard.press("Shift+Tab")
    assert page.evaluate("() => document.activeElement.textContent") == "curl"
    outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    assert page.is_visible("#code")
    page.keyboard.press("Escape")
    assert page.evaluate("() => document.activeElement.textContent") == "curl"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(open_page: Open, colours: Path, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python (extra dev)")
    opened = open_page(color_scheme=scheme, width=1280 if scheme == "light" else 390)
    page = opened.page
    page.get_by_text("Add a picture to see its tiles.").wait_for()
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}

    def faults() -> list[str]:
        found = axe.Axe().run(page, options=rules).response["violations"]
        return [f"{one['id']}: {node['html'][:120]}" for one in found for node in one["nodes"]]

    assert faults() == []
    opened.set(max_completion_tokens="8")
    opened.add(colours)
    opened.ask("Hello")
    opened.add(colours)
    page.set_input_files("#files", str(Path(__file__)))
    page.locator("#refusals p").wait_for()
    page.focus(".tile >> nth=6")
    assert faults() == []
    page.get_by_role("button", name="curl", exact=True).click()
    assert faults() == []


def test_nothing_is_wider_than_the_window(opened: Opened, colours: Path, tmp_path: Path) -> None:
    long = tmp_path / f"{'a-long-name-' * 8}.png"
    Image.new("RGB", (600, 100), "navy").save(long)
    opened.set(max_completion_tokens="8")
    opened.add(colours, long)
    wide = "all => all.filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.className || one.id)"
    for _ in range(2):
        for width in (320, 390, 899, 900, 1600):
            opened.page.set_viewport_size({"width": width, "height": 700})
            assert opened.page.evaluate("() => document.documentElement.scrollWidth") <= width
            assert opened.page.eval_on_selector_all(".scroll, .ask, .bar, .image, .turn", wide) == []
        opened.ask("x" * 60)


def test_colours_follow_the_system_until_one_is_chosen(open_page: Open) -> None:
    opened = open_page(color_scheme="dark")
    page = opened.page
    ground = "() => getComputedStyle(document.documentElement).backgroundColor"
    page.get_by_role("button", name="Change to light colours").wait_for()
    dark = page.evaluate(ground)
    page.emulate_media(color_scheme="light")
    page.get_by_role("button", name="Change to dark colours").wait_for()
    light = page.evaluate(ground)
    page.get_by_role("button", name="Change to dark colours").click()
    assert (page.evaluate(ground), light != dark) == (dark, True)
    page.reload()
    page.get_by_role("button", name="Change to light colours").wait_for()
    assert page.evaluate(ground) == dark


@contextlib.contextmanager
def another_gateway(server: TritonServer, engine_dir: Path, settings: GatewaySettings) -> Iterator[str]:
    """The address of a gateway with other settings, before the same server."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    upstream = Upstream("127.0.0.1:1", server.grpc_url, server.metrics_url)
    served = Served(upstream, ("nvlm",), lambda: True, engine_dir=engine_dir)
    gateway = Gateway("127.0.0.1", port, served, settings, grace=1)
    gateway.start()
    yield f"127.0.0.1:{port}"
    gateway.stop()


@pytest.fixture
def guarded(server: TritonServer, engine_dir: Path, recipe: BuildRecipe) -> Iterator[str]:
    """A gateway that asks for keys."""
    with another_gateway(server, engine_dir, GatewaySettings(Limits.of(recipe), api_keys=(KEY,))) as address:
        yield address


@pytest.fixture
def single(server: TritonServer, engine_dir: Path, recipe: BuildRecipe) -> Iterator[str]:
    """A gateway that lets a client have one request at a time."""
    limits = replace(Limits.of(recipe), key_concurrent=1)
    with another_gateway(server, engine_dir, GatewaySettings(limits)) as address:
        yield address


@pytest.fixture
def lying(server: TritonServer, engine_dir: Path, recipe: BuildRecipe, tmp_path: Path) -> Iterator[str]:
    """A gateway whose recipe leaves photographs as they lie."""
    changed = recipe.model_copy(update={"exif_orientation": False})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(changed.model_dump(mode="json")))
    for name in ("config.json", "tokenizer"):
        (tmp_path / name).symlink_to(engine_dir / name)
    with another_gateway(server, tmp_path, GatewaySettings(Limits.of(recipe))) as address:
        yield address


def test_what_the_page_looks_at_does_not_keep_a_question_from_being_answered(
    open_page: Open, single: str, colours: Path
) -> None:
    opened = open_page(single)
    opened.page.get_by_text("Add a picture to see its tiles.").wait_for()
    opened.set(max_completion_tokens="4")
    opened.add(colours)
    for question in ("What is it?", "And why?"):
        turn = opened.ask(question)
        assert turn.locator(".refusal p").all_text_contents() == []
        prompt = turn.locator(".answered .figures").text_content().partition(" + ")[0].split()[-1]
        opened.page.get_by_text(f"{prompt} prompt tokens").wait_for()


def test_large_pictures_are_sent_once_to_be_looked_at(opened: Opened, tmp_path: Path) -> None:
    """Further questions about them send them to the model alone."""
    large = tmp_path / "noise.png"
    Image.frombytes("RGB", (640, 640), random.Random(0).randbytes(3 * 640 * 640)).save(large)
    opened.set(max_completion_tokens="4")
    opened.page.keyboard.press("Tab")  # the setting is taken when its field is left
    opened.add(large)
    for question in ("What is it?", "And why?"):
        assert opened.ask(question).locator(".refusal p").count() == 0
    assert opened.page.locator(".image").count() == 1
    with_picture = [body for body in opened.bodies("/v1/tiles") if "image_url" in json.dumps(body)]
    assert len(with_picture) == 1


def test_where_photographs_are_left_as_they_lie_the_page_asks_to_turn_them(
    open_page: Open, lying: str, tmp_path: Path
) -> None:
    """It draws them upright: so are they to be seen by the model."""
    opened = open_page(lying)
    opened.page.get_by_text("Add a picture to see its tiles.").wait_for()
    opened.add(photograph(tmp_path / "IMG_0001.jpg", 360, 240))
    assert f"240 {BY} 360 pixels" in opened.page.text_content(".image")
    assert first_tile(opened.page) == pytest.approx([0xD0, 0x30, 0x30], abs=6)
    opened.ask("What is it?").get_by_role("button", name="Python").click()
    assert '"exif_orientation": True,' in opened.page.text_content("#code-text")


def test_where_keys_are_asked_for_the_page_asks_for_one(open_page: Open, guarded: str) -> None:
    opened = open_page(guarded)
    opened.expected_faults = ("401 (Unauthorized)",)
    page = opened.page
    page.locator("#key[open]").wait_for()
    page.fill("#key-text", "not-one-of-the-servers-keys")
    page.keyboard.press("Enter")
    page.get_by_text("the API key is not one of this server's").wait_for()
    page.fill("#key-text", KEY)
    page.get_by_role("button", name="Use this key").click()
    page.get_by_text("Add a picture to see its tiles.").wait_for()  # the limits have come: questions are taken now
    opened.ask("Hello")
    assert KEY in opened.stored("sessionStorage").values()
    assert KEY not in str(opened.stored("localStorage"))
    assert page.context.cookies() == []
    page.get_by_role("button", name="curl", exact=True).click()
    assert '"Authorization: Bearer $OPENAI_API_KEY"' in page.text_content("#code-text")
    assert KEY not in page.content()


def test_a_server_that_is_away_is_told_of(open_page: Open, opened: Opened) -> None:
    opened.expected_faults = ("ERR_",)
    opened.page.context.set_offline(True)
    turn = opened.ask("Hello")
    assert turn.locator(".refusal p").all_text_contents() == ["The server cannot be reached."]
    opened.page.context.set_offline(False)
    turn.get_by_role("button", name="Try again").click()
    turn.get_by_role("button", name="Ask again").wait_for()

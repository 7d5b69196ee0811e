"""The page by keyboard, by ear, and in narrow windows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from .opened import Open, Opened, needs_chromium

pytestmark = needs_chromium


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


def test_a_screen_reader_hears_an_answer_without_spaces_as_it_comes(opened: Opened) -> None:
    page = opened.page
    page.clock.install()
    page.evaluate("""async () => {
      const { Announcer } = await import('/page/announcer.js');
      window.announcer = new Announcer();
    }""")
    for text in ("这是一只猫。", "它在睡觉。"):
        page.evaluate("text => announcer.add(text)", text)
        assert page.text_content("#said") != text
        page.clock.run_for(3000)
        assert page.text_content("#said") == text


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


WATCH = """() => {
  window.seen = [];
  new MutationObserver(() => {
    const [turns, ask] = ['turns', 'ask'].map(id => document.getElementById(id).getBoundingClientRect());
    seen.push([turns.bottom <= Math.min(ask.top, innerHeight), ask.bottom <= innerHeight]);
  }).observe(document.getElementById('turns'), {subtree: true, childList: true, characterData: true});
}"""
LONG = "\n".join(["Tell me"] * 20)
SCROLLED = "() => [scrollY, document.getElementById('talk-scroll').scrollTop]"


@pytest.mark.parametrize(("width", "height"), [(1280, 480), (390, 480), (390, 319)], ids=["wide", "narrow", "low"])
def test_a_reader_at_the_end_follows_an_answer_with_stop_at_hand(open_page: Open, width: int, height: int) -> None:
    opened = open_page(width=width, height=height)
    page = opened.page
    page.get_by_text("Add a picture to see its tiles.").wait_for()
    opened.set(max_completion_tokens="300")
    page.click("#settings-toggle")
    page.evaluate(WATCH)
    opened.ask(LONG)
    ends, forms = zip(*page.evaluate("() => seen"), strict=True)
    assert all(ends)
    assert all(forms) or height < 320  # which the form would fill
    assert max(page.evaluate(SCROLLED)) > 0


@pytest.mark.parametrize("width", [1280, 390], ids=["wide", "narrow"])
def test_a_reader_elsewhere_stays_there(open_page: Open, width: int) -> None:
    opened = open_page(width=width, height=480)
    page = opened.page
    page.get_by_text("Add a picture to see its tiles.").wait_for()
    opened.set(max_completion_tokens="120")
    page.click("#settings-toggle")
    for question in (LONG, "And then?"):
        opened.ask(question)
    page.get_by_role("button", name="Ask again").click()
    page.locator("#stop").wait_for()
    page.evaluate("() => { scrollTo(0, 40); document.getElementById('talk-scroll').scrollTop = 40; }")
    there = page.evaluate(SCROLLED)
    page.get_by_role("button", name="Ask again").wait_for()
    assert (page.evaluate(SCROLLED), max(there)) == (there, 40)


def above_form(page: Any, selector: str) -> float:
    """Pixels that an element ends above the form."""
    box = page.locator(selector).bounding_box()
    return float(page.locator("#ask").bounding_box()["y"] - box["y"] - box["height"])


def test_the_form_leaves_room_and_hides_nothing_that_the_keyboard_reaches(open_page: Open) -> None:
    opened = open_page(width=390, height=600)
    page = opened.page
    page.get_by_text("Add a picture to see its tiles.").wait_for()
    opened.set(max_completion_tokens="120")
    page.click("#settings-toggle")
    opened.ask(LONG)
    page.focus("#question")
    page.evaluate("() => scrollBy(0, -60)")
    assert above_form(page, ".turn-tools button >> nth=2") < 0
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("() => document.activeElement.textContent") == "Python"
    assert above_form(page, ":focus") >= 0
    page.click("#settings-toggle")
    page.fill("#question", "\n" * 30)
    form = page.locator("#ask").bounding_box()
    assert form["height"] <= 450
    assert form["y"] + form["height"] <= 600

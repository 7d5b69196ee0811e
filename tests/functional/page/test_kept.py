"""What the browser keeps: settings, colours, the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from .another_gateway import KEY
from .opened import Open, Opened, needs_chromium

pytestmark = needs_chromium


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


def test_a_key_with_a_character_that_no_header_carries_is_not_taken(open_page: Open, guarded: str) -> None:
    """Such as one that is not seen: it would lock the tab, as no request with it leaves the browser."""
    opened = open_page(guarded)
    opened.expected_faults = ("401 (Unauthorized)",)
    page = opened.page
    page.locator("#key[open]").wait_for()
    for wrong in (f"{KEY}\N{ZERO WIDTH SPACE}", f"{KEY}é"):
        page.fill("#key-text", wrong)
        page.get_by_role("button", name="Use this key").click()
        assert page.is_visible("#key[open]")
        assert opened.stored("sessionStorage") == {}
    assert page.eval_on_selector("#key-text", "field => field.validity.patternMismatch")
    assert page.get_attribute("#key-text", "title").startswith("ASCII characters only")
    page.fill("#key-text", f" {KEY} ")
    page.get_by_role("button", name="Use this key").click()
    page.get_by_text("Add a picture to see its tiles.").wait_for()


FORBID = """for (const kind of ['localStorage', 'sessionStorage']) {
  Object.defineProperty(window, kind, {get() { throw new DOMException('', 'SecurityError'); }});
}"""


def test_where_the_browser_keeps_nothing_the_page_works_without(open_page: Open, guarded: str) -> None:
    opened = open_page(guarded)
    opened.expected_faults = ("401 (Unauthorized)",)
    page = opened.page
    page.add_init_script(FORBID)
    page.reload()
    page.fill("#key-text", KEY)
    page.get_by_role("button", name="Use this key").click()
    page.get_by_text("Add a picture to see its tiles.").wait_for()
    page.get_by_role("button", name="Change to dark colours").click()
    page.get_by_role("button", name="Change to light colours").wait_for()
    opened.set(max_completion_tokens="4")
    assert opened.ask("Hello").locator(".refusal p").count() == 0


@pytest.mark.parametrize("damaged", ["{", "null", "[7]", '"text"'])
def test_damaged_settings_are_none(opened: Opened, damaged: str) -> None:
    opened.page.evaluate("text => localStorage.setItem('nvlm-trt-settings', text)", damaged)
    opened.page.reload()
    opened.page.get_by_text("Add a picture to see its tiles.").wait_for()
    opened.set(max_completion_tokens="4")
    assert opened.ask("Hello").locator(".refusal p").count() == 0
    assert opened.page.evaluate("() => JSON.parse(localStorage['nvlm-trt-settings'])") == {"max_completion_tokens": 4}

"""Questions and answers on the page."""

from __future__ import annotations

import time
from pathlib import Path

import openai
import pytest

from nvlm_trt.host.server import TritonServer

from .opened import Open, Opened, needs_chromium

pytestmark = needs_chromium


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


AT_FIRST_TEXT = """(act) => new Promise(resolve => new MutationObserver((_, observer) => {
  if (!document.querySelector('.answered .text')?.textContent) return;
  observer.disconnect();
  act();
  resolve();
}).observe(document.getElementById('turns'), {subtree: true, childList: true, characterData: true}))"""


def test_stopping_ends_the_answer_at_the_server_too(opened: Opened, server: TritonServer) -> None:
    page = opened.page
    page.fill("#question", "Tell me")
    page.evaluate(f"() => {{ window.stopped = ({AT_FIRST_TEXT})(() => document.getElementById('stop').click()); }}")
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


PRESS = """(key, more) => document.getElementById('question').dispatchEvent(
  new KeyboardEvent('keydown', {key, ...more, bubbles: true, cancelable: true}))"""


@pytest.mark.parametrize("composing", ["{isComposing: true}", "{keyCode: 229}"], ids=["usual", "Safari"])
def test_keys_that_compose_a_text_neither_ask_nor_stop(opened: Opened, composing: str) -> None:
    page = opened.page
    opened.set(max_completion_tokens="40")
    page.fill("#question", "日本")
    page.evaluate(f"() => ({PRESS})('Enter', {composing})")
    assert page.locator(".turn").count() == 0
    page.evaluate(f"() => {{ window.pressed = ({AT_FIRST_TEXT})(() => ({PRESS})('Escape', {composing})); }}")
    page.focus("#question")
    page.keyboard.press("Enter")
    page.evaluate("() => window.pressed")
    page.locator(".turn-tools button").first.wait_for()
    assert "Stopped" not in page.text_content(".answered .figures")
    opened.set(max_completion_tokens="400")  # a short answer may be there as a whole when its first text is seen
    page.evaluate(f"() => {{ window.pressed = ({AT_FIRST_TEXT})(() => ({PRESS})('Escape')); }}")
    page.get_by_role("button", name="Ask again").click()
    page.locator(".figures", has_text="Stopped").wait_for()


def test_a_new_conversation_during_an_answer_can_be_asked_at_once(opened: Opened) -> None:
    page = opened.page
    page.evaluate(f"() => {{ window.came = ({AT_FIRST_TEXT})(() => document.getElementById('new').click()); }}")
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


def test_a_server_that_is_away_is_told_of(open_page: Open, opened: Opened) -> None:
    opened.expected_faults = ("ERR_",)
    opened.page.context.set_offline(True)
    turn = opened.ask("Hello")
    assert turn.locator(".refusal p").all_text_contents() == ["The server cannot be reached."]
    opened.page.context.set_offline(False)
    turn.get_by_role("button", name="Try again").click()
    turn.get_by_role("button", name="Ask again").wait_for()

"""Pictures of a question: pasted, dropped, chosen, refused."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from PIL import Image

from nvlm_trt.recipe import BuildRecipe

from .opened import BY, Opened, needs_chromium

pytestmark = needs_chromium


def test_pictures_are_pasted_and_dropped(opened: Opened, square: Path) -> None:
    assert opened.give("paste", square, "pasted.jpg")
    opened.give("dragenter", square, "x.jpg")
    assert opened.page.is_visible("#drop")
    assert opened.give("drop", square, "dropped.jpg")
    opened.page.locator(".image >> nth=1").wait_for()
    assert opened.page.locator(".chip b").all_text_contents() == ["pasted.jpg", "dropped.jpg"]
    assert opened.page.text_content("#said") == f"pasted.jpg: 1 {BY} 1 tile. dropped.jpg: 1 {BY} 1 tile"
    assert opened.page.is_hidden("#drop")


def test_a_copied_file_is_a_picture_and_a_copied_table_is_text(opened: Opened, square: Path) -> None:
    """Beside a file, file managers copy its name; of a table, office programs copy text, HTML and a picture."""
    assert not opened.give("paste", square, "image.jpg", plain="a\tb", html="<table><tr><td>a<td>b</table>")
    assert opened.give("paste", square, "cat.jpg", plain="cat.jpg")
    assert opened.give("paste", square, "image.jpg", html="<img src='cat.jpg'>")  # as browsers copy a picture
    opened.page.locator(".image >> nth=1").wait_for()
    assert opened.page.locator(".chip b").all_text_contents() == ["cat.jpg", "image.jpg"]


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

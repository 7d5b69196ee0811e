"""What the model sees, as the page shows it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from PIL import Image

from nvlm_trt.gateway.settings import GatewaySettings, Limits
from nvlm_trt.host.server import TritonServer
from nvlm_trt.recipe import BuildRecipe

from .another_gateway import another_gateway
from .opened import BY, COLOURS, Open, Opened, middle_colour, needs_chromium

TO: Final = "\N{EN DASH}"

pytestmark = needs_chromium


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

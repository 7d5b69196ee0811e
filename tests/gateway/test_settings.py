"""What an operator may decide, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvlm_trt.errors import RequestError
from nvlm_trt.gateway.settings import KEYS_VARIABLE, GatewaySettings, Limits, check_domains, read_keys
from nvlm_trt.recipe import parse_recipe

KEYS = ("the-first-of-the-keys", "the-second-of-the-keys")


def test_a_recipe_decides_what_images_and_places_there_are() -> None:
    recipe = parse_recipe(
        {
            "name": "x",
            "target": "cpu",
            "vision_precision": "fp32",
            "decoder_precision": "fp32",
            "max_batch_size": 4,
            "max_images": 2,
            "image_limits": {"max_bytes": 3000},
        },
        "x",
    )
    limits = Limits.of(recipe)
    assert (limits.max_images, limits.max_image) == (2, 3000)
    assert limits.max_body == 2 * 4000 + (16 << 20)
    assert (limits.max_concurrent, limits.max_queue) == (16, 64)


def test_limits_are_changed_by_name() -> None:
    limits = Limits().changed(["max_concurrent=5", "deadline=0.5", "key_per_minute=90", "key_concurrent=2"])
    assert limits == Limits(max_concurrent=5, deadline=0.5, key_per_minute=90.0, key_concurrent=2)
    assert Limits().changed(["max_queue=0"]).max_queue == 0


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("max_concurent=5", "did you mean max_concurrent?"),
        ("speed=5", "known limits: max_body"),
        ("max_concurrent", "max_concurrent is out of range"),
        ("max_concurrent=0", "a whole number from 1"),
        ("max_concurrent=1.5", "a whole number from 1"),
        ("deadline=inf", "deadline is out of range"),
        ("deadline=-1", "deadline is out of range"),
    ],
)
def test_a_limit_that_is_none_is_refused(word: str, sentence: str) -> None:
    with pytest.raises(RequestError) as refusal:
        Limits().changed([word])
    assert sentence in str(refusal.value)


def test_keys_come_from_a_file_and_from_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# for the tests\n\n{KEYS[0]}\n{KEYS[0]}\n")
    assert read_keys(file, {KEYS_VARIABLE: f" {KEYS[1]},"}) == (KEYS[1], KEYS[0])
    assert read_keys(None, {}) == ()


def test_keys_that_cannot_be_read_or_are_easily_guessed_are_refused_unseen(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        read_keys(tmp_path / "missing", {})
    (tmp_path / "empty").write_text("# nothing\n")
    with pytest.raises(RequestError, match="holds none"):
        read_keys(tmp_path / "empty", {})
    with pytest.raises(RequestError, match="API key 2 of 2") as refusal:
        read_keys(None, {KEYS_VARIABLE: f"{KEYS[0]} secret"})
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("after", ["  # alice", " #alice", "\t# alice", " " + KEYS[1], "\x01"])
def test_a_key_with_anything_behind_it_on_its_line_is_refused_and_not_taken_for_one_key(
    tmp_path: Path, after: str
) -> None:
    (tmp_path / "keys").write_text(f"{KEYS[1]}\n{KEYS[0]}{after}\n")
    with pytest.raises(RequestError, match=r"API key 2 of 2 .* a comment on a line of its own") as refusal:
        read_keys(tmp_path / "keys", {})
    assert KEYS[0] not in str(refusal.value)


def test_settings_are_shown_without_the_keys() -> None:
    settings = GatewaySettings(Limits(), KEYS, ("a.example",))
    assert settings.shown()["api_keys"] == 2
    assert not any(key in f"{settings!r} {settings.shown()}" for key in KEYS)
    assert (settings.inner_host("0.0.0.0"), GatewaySettings().inner_host("0.0.0.0")) == ("127.0.0.1", "0.0.0.0")


def test_domains_are_hosts() -> None:
    assert check_domains(["Example.com", "*.a.example:8080"]) == ("example.com", "*.a.example:8080")
    for bad in ("https://a.example", "a.example/x", "*", "a.*", "", "user@a.example"):
        with pytest.raises(RequestError, match="no domain"):
            check_domains([bad])

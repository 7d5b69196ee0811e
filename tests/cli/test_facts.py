"""The verbs that show facts: inspect, tiles, prompt, synth."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import ExifTags, Image

from nvlm_trt.model.tiling import cut_tiles, plan_grid

Run = Callable[..., Any]


def test_inspect_counts_parts_and_totals(nvlm_trt: Run, tiny_checkpoint: Path) -> None:
    facts = nvlm_trt("inspect", tiny_checkpoint, "--json").json
    parts = facts["parts"]
    assert list(parts) == ["vision", "projector", "decoder", "total"]
    for figure in ("tensors", "parameters", "bytes"):
        assert parts["total"][figure] == sum(parts[name][figure] for name in ("vision", "projector", "decoder"))
    assert set(parts["decoder"]["dtypes"]) == {"BF16", "F32"}
    assert (facts["tile_size"], facts["tokens_per_tile"], facts["dummy_heads"]) == (112, 16, 3)
    assert (facts["missing"], facts["extra"]) == ([], [])
    shown = nvlm_trt("inspect", tiny_checkpoint)
    assert "nothing is missing" in shown.out


def test_inspect_lists_what_is_missing_with_exit_code_2(nvlm_trt: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in tiny_checkpoint.iterdir():
        if "00002" not in path.name:
            (broken / path.name).symlink_to(path)
    shown = nvlm_trt("inspect", broken)
    assert shown.code == 2
    assert "a shard is missing" in shown.err
    assert "Traceback" not in shown.err


def test_tiles_tell_grid_tags_tokens_and_size(nvlm_trt: Run, photograph: Path) -> None:
    facts = nvlm_trt("tiles", photograph, "--json").json
    boxes = facts.pop("boxes")
    assert (boxes[0], boxes[-1]) == ([0, 0, 451 / 3, 150], [0, 0, 451, 300])
    assert facts == {
        "columns": 3,
        "rows": 2,
        "tags": [*(f"<tile_{number}>" for number in range(1, 7)), "<tile_global_thumbnail>"],
        "tokens": 7 * 256,
        "size": [451, 300],
    }
    facts = nvlm_trt("tiles", photograph, "--max-tiles", 1, "--tile-size", 112, "--json").json
    assert (facts["tags"], facts["tokens"]) == (["<tile_global_thumbnail>"], 16)
    assert "3 columns x 2 rows, and a thumbnail" in nvlm_trt("tiles", photograph).out


def test_saved_tiles_sort_in_the_models_order_and_hold_its_pixels(
    nvlm_trt: Run, photograph: Path, tmp_path: Path
) -> None:
    assert nvlm_trt("tiles", photograph, "--tile-size", 112, "--save", tmp_path / "tiles").code == 0
    files = sorted((tmp_path / "tiles").iterdir())
    assert [file.name for file in files][::6] == ["01_tile_1.png", "07_tile_global_thumbnail.png"]
    image = Image.open(photograph).convert("RGB")
    expected = cut_tiles(image, plan_grid(451, 300, max_tiles=6, tile_size=112), 112)
    assert np.array_equal(np.stack([np.asarray(Image.open(file)) for file in files]), expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tile-size", "100"], "seen: 100; expected: n x 28"),
        (["--max-tiles", "13"], "expected: 1 to 12"),
    ],
)
def test_tiles_refuse_what_the_model_has_not(nvlm_trt: Run, photograph: Path, words: list[str], message: str) -> None:
    shown = nvlm_trt("tiles", photograph, *words)
    assert shown.code == 2
    assert message in shown.err


def test_tiles_refuse_what_is_no_image(nvlm_trt: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("not an image")
    for name in ("notes.png", "absent.png"):
        shown = nvlm_trt("tiles", tmp_path / name)
        assert shown.code == 2
        assert shown.err.startswith("error: ")
        assert name in shown.err


def test_prompt_shows_text_and_ids(nvlm_trt: Run, tiny_checkpoint: Path, photograph: Path, tmp_path: Path) -> None:
    facts = nvlm_trt("prompt", tiny_checkpoint, "--prompt", "What is it?", "--image", photograph, "--json").json
    assert list(facts) == ["text", "input_ids", "tiles", "num_visual_tokens"]
    assert facts["tiles"] == [7]
    assert facts["num_visual_tokens"] == 7 * 16 == facts["text"].count("<|vision_pad|>")
    assert facts["text"].startswith(
        "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<Image><tile_1>"
    )
    shown = nvlm_trt("prompt", tiny_checkpoint, "--prompt", "What is it?", "--image", photograph)
    assert "<tile_1><|vision_pad|> x 16<tile_2>" in shown.out
    history = tmp_path / "history.json"
    history.write_text(json.dumps([["Who?", "Me."]]))
    text = nvlm_trt(
        "prompt", tiny_checkpoint, "--prompt", "Why?", "--history", history, "--system", "Be brief.", "--json"
    ).json["text"]
    assert "system\nBe brief.<|im_end|>" in text
    assert "user\nWho?<|im_end|><|im_start|>assistant\nMe.<|im_end|><|im_start|>user\nWhy?" in text


def test_prompt_reads_an_engine_directory_too(nvlm_trt: Run, tiny_checkpoint: Path, small_engine: Path) -> None:
    words = ("--prompt", "Hello", "--json")
    assert nvlm_trt("prompt", small_engine, *words).json == nvlm_trt("prompt", tiny_checkpoint, *words).json


def test_prompt_reads_images_as_the_engine_does_unless_it_is_told_otherwise(
    nvlm_trt: Run, small_engine: Path, tmp_path: Path
) -> None:
    engine, broad, turned = tmp_path / "engine", tmp_path / "broad.png", tmp_path / "turned.jpg"
    shutil.copytree(small_engine, engine)
    recipe = yaml.safe_load((engine / "recipe.yaml").read_text())
    recipe |= {"max_tiles": 2, "exif_orientation": False, "image_limits": {"max_side": 300}}
    (engine / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (300, 100)).save(broad)
    Image.new("RGB", (140, 100)).save(turned, exif=exif)

    def tiles(*words: object) -> object:
        images = ("--prompt", "What?", "--image", broad, "--image", turned)
        return nvlm_trt("prompt", engine, *images, *words, "--json").json["tiles"]

    assert tiles() == [3, 1]
    assert tiles("--exif") == [3, 3]
    assert tiles("--max-tiles", 3) == [4, 1]
    Image.new("RGB", (301, 100)).save(broad)
    shown = nvlm_trt("prompt", engine, "--prompt", "What?", "--image", broad)
    assert shown.code == 2
    assert f"{broad}: the image is too long" in shown.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--like", "7b"], "no such synthetic model; seen: 7b"),
        (["--size", "huge"], "no such synthetic model; seen: huge"),
        (["--like", "72b"], "needs --layers"),
        (["--layers", "2"], "goes with --like"),
        (["--like", "72b", "--size", "tiny"], "exclude each other"),
        (["--like", "72b", "--layers", "46"], "expected: 1 to 45"),
    ],
)
def test_synth_refuses_what_it_cannot_make(nvlm_trt: Run, tmp_path: Path, words: list[str], message: str) -> None:
    shown = nvlm_trt("synth", tmp_path / "out", *words)
    assert shown.code == 2
    assert message in shown.err
    assert not (tmp_path / "out").exists()


def test_synth_makes_a_checkpoint_that_inspect_accepts(nvlm_trt: Run, tmp_path: Path) -> None:
    assert nvlm_trt("synth", tmp_path / "made", "--quiet").out == f"{tmp_path / 'made'}: 85 tensors, 2,920,800 bytes\n"
    assert nvlm_trt("inspect", tmp_path / "made").code == 0
    assert nvlm_trt("synth", tmp_path / "made").code == 2

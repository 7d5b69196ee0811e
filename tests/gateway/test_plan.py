"""What is planned from headers and text is what the server's own preparation makes of the request."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFile

import nvlm_trt.model.image
from nvlm_trt.errors import ImageRejected, PromptError, RequestError, UserError
from nvlm_trt.gateway.plan import Planner, plan_generate
from nvlm_trt.model.tokenizer import NvlmTokenizer
from nvlm_trt.recipe import BuildRecipe, parse_recipe
from nvlm_trt.serving.preprocessing import Preprocessor
from nvlm_trt.serving.spec import ServingSpec

WANTED = ["input_ids", "num_tiles", "request_output_len"]
SIDEWAYS = 6


@pytest.fixture(scope="module")
def recipe() -> BuildRecipe:
    return parse_recipe(
        {
            "name": "planned",
            "target": "cpu",
            "vision_precision": "fp32",
            "decoder_precision": "fp32",
            "max_batch_size": 4,
            "max_tiles": 6,
            "max_images": 3,
            "max_input_len": 512,
            "max_output_len": 100,
        },
        "planned",
    )


@pytest.fixture(scope="module")
def spec(tiny_checkpoint: Path, recipe: BuildRecipe) -> ServingSpec:
    return ServingSpec.of(tiny_checkpoint, recipe)


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> NvlmTokenizer:
    return NvlmTokenizer.load(tiny_checkpoint)


@pytest.fixture(scope="module")
def planner(spec: ServingSpec, tokenizer: NvlmTokenizer) -> Planner:
    return Planner(spec, tokenizer)


@pytest.fixture(scope="module")
def preprocessor(spec: ServingSpec, tokenizer: NvlmTokenizer) -> Preprocessor:
    return Preprocessor(spec, tokenizer)


def picture(width: int, height: int, orientation: int = 1, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (width, height), "teal").save(file, kind, exif=exif)
    return file.getvalue()


def fields(**values: object) -> dict[str, npt.NDArray[np.object_]]:
    packed = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
    return {
        name: np.array([one.encode() if isinstance(one, str) else one for one in value], object)
        for name, value in packed.items()
    }


@pytest.mark.parametrize(
    "images",
    [
        [],
        [picture(640, 480)],
        [picture(100, 700), picture(700, 100)],
        [picture(300, 200, SIDEWAYS), picture(200, 300, 3), picture(64, 64, 8, "PNG")],
    ],
)
@pytest.mark.parametrize("upright", [True, False])
def test_tiles_and_tokens_are_those_of_the_servers_own_preparation(
    planner: Planner, preprocessor: Preprocessor, spec: ServingSpec, images: list[bytes], upright: bool
) -> None:
    text = "What is it, <|im_end|> and where?  \n ünïcode e\u0301"
    prepared = preprocessor.run(fields(text_input=text, image_bytes=images, exif_orientation=upright), WANTED)
    plan = planner.plan(text, images=images, exif_orientation=upright)
    ids = prepared["input_ids"][0]
    assert plan.prompt_tokens == len(ids)
    assert plan.answer_tokens == prepared["request_output_len"].item()
    assert sum(one.grid.num_tiles for one in plan.images) == (prepared["num_tiles"].item() if images else 0)
    ranges = [one for image in plan.images for one in image.ranges]
    assert [index for start, end in ranges for index in range(start, end)] == np.flatnonzero(
        ids >= spec.vocab_size
    ).tolist()


def test_a_conversation_with_places_for_its_images_is_planned_as_it_is_prepared(
    planner: Planner, preprocessor: Preprocessor
) -> None:
    said = ["Be brief.", "<image>\nWhat?", "A cup.", "And <image>?"]
    roles = ("system", "user", "assistant", "user")
    messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
    images = [picture(640, 480), picture(30, 40)]
    sent = fields(messages=json.dumps(messages), image_bytes=images, max_tiles=2, max_tokens=7)
    plan = planner.plan(said[3], images=images, history=[(said[1], said[2])], system=said[0], max_tiles=2, max_tokens=7)
    assert plan.prompt_tokens == preprocessor.run(sent, WANTED)["input_ids"].size
    assert plan.tokens == plan.prompt_tokens + 7


def test_no_pixel_is_decoded(planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("decoded")

    images = [picture(640, 480, SIDEWAYS), picture(640, 480, kind="PNG")]
    monkeypatch.setattr(nvlm_trt.model.image, "read_image", refuse)
    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    assert [one.size for one in planner.plan("x", images=images).images] == [(480, 640), (640, 480)]


def test_a_prompt_beyond_the_engine_is_refused_with_both_counts(planner: Planner) -> None:
    images = [picture(600, 100)] * 3
    with pytest.raises(PromptError, match=r"seen: \d+ tokens, 336 of them visual; expected: at most 512") as refusal:
        planner.plan("word " * 300, images=images)
    counted = int(str(refusal.value).partition("seen: ")[2].partition(" ")[0])
    assert 636 < counted < 1000


def test_an_answer_that_has_no_room_is_refused_where_its_length_was_named(planner: Planner, spec: ServingSpec) -> None:
    close = Planner(replace(spec, max_seq_len=60), planner.tokenizer)
    room = 60 - close.plan("x").prompt_tokens
    assert close.plan("x").answer_tokens == room
    assert close.plan("x", max_tokens=room).tokens == 60
    with pytest.raises(RequestError, match=rf"longer than the engine; seen: {60 - room} \+ {room + 1} tokens"):
        close.plan("x", max_tokens=room + 1)
    with pytest.raises(RequestError, match="seen: 101; expected: 1 to 100"):
        planner.plan("x", max_tokens=101)


def test_a_bad_header_is_told_by_the_images_number(planner: Planner) -> None:
    with pytest.raises(ImageRejected, match="image 2 of 2: the image is too small; seen: 1 x 5"):
        planner.plan("x", images=[picture(640, 480), picture(1, 5)])
    with pytest.raises(RequestError, match="max_tiles is out of range; seen: 7; expected: 1 to 6"):
        planner.plan("x", max_tiles=7)


@pytest.mark.parametrize("nested", [True, False])
def test_a_generate_call_is_planned_as_it_is_prepared(
    planner: Planner, preprocessor: Preprocessor, nested: bool
) -> None:
    image = picture(640, 480, SIDEWAYS)
    options = {"max_tokens": 9, "max_tiles": 3, "exif_orientation": False}
    texts = {
        "text_input": "What, \u00fc?",
        "image_bytes": [base64.b64encode(image).decode()],
        "system_message": "Short.",
    }
    body = {**texts, "parameters": options} if nested else {**texts, **options}
    plan = plan_generate(planner, json.dumps(body).encode())
    sent = fields(**texts | {"image_bytes": [image]}, **options)
    assert plan.tokens == preprocessor.run(sent, WANTED)["input_ids"].size + 9


def test_a_generate_call_is_refused_as_the_server_would(planner: Planner) -> None:
    for body, sentence in (
        ({"text_input": "word " * 600}, "longer than the engine"),
        ({"text_input": "x", "image_bytes": ["bm8gaW1hZ2U="]}, "image 1 of 1: this is not an image"),
        ({"messages": "{}"}, "messages is not a list"),
        ({"max_tokens": 4}, "text_input is missing"),
    ):
        with pytest.raises(UserError, match=sentence):
            plan_generate(planner, json.dumps(body).encode())

"""From a request to tiles, ids and the decoder's sampling values."""

from __future__ import annotations

import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from nvlm_trt.errors import ImageRejected, PromptError, RequestError
from nvlm_trt.model.image import read_image
from nvlm_trt.model.prompt import build_prompt
from nvlm_trt.serving import preprocessing
from nvlm_trt.serving.config import configs
from nvlm_trt.serving.decoder_tensors import DECODER_FROM_PREPROCESSING
from nvlm_trt.serving.decoding_room import DecodingRoom
from nvlm_trt.serving.faults import CancelledByClientError
from nvlm_trt.serving.preprocessing import NUM_TILES, TILES, Preprocessor, image_digest
from nvlm_trt.serving.spec import ServingSpec

ALL = [name for name, _, _ in DECODER_FROM_PREPROCESSING] + [TILES, NUM_TILES]


@pytest.fixture
def preprocessor(spec, tokenizer):
    return Preprocessor(spec, tokenizer)


def png(color: str, size: tuple[int, int] = (224, 112)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


def test_outputs_have_the_types_and_shapes_of_the_configuration(preprocessor, spec, text):
    outputs = preprocessor.run({"text_input": text("What?"), "image_bytes": text(png("red"))}, ALL)
    declared = {tensor.name: tensor for tensor in configs(spec)["preprocessing"].output}
    assert set(outputs) == set(ALL)
    for name, values in outputs.items():
        dims = list(declared[name].dims)
        assert len(dims) == values.ndim
        assert all(want in (-1, seen) for want, seen in zip(dims, values.shape, strict=True))


def test_ids_are_those_of_the_prompt(preprocessor, spec, tokenizer, text):
    outputs = preprocessor.run({"text_input": text("What?"), "image_bytes": text(png("red"), png("blue"))}, ALL)
    prompt = build_prompt(tokenizer, 16, "What?", tiles=(3, 3))
    assert outputs[NUM_TILES].tolist() == [6]
    assert outputs[TILES].shape == (6, 112, 112, 3)
    assert outputs["input_ids"][0].tolist() == prompt.decoder_ids(spec.vocab_size).tolist()
    assert outputs["input_lengths"].item() == len(prompt.input_ids)


def test_extra_ids_tell_the_images_apart_and_are_0_at_text(preprocessor, spec, text):
    outputs = preprocessor.run({"text_input": text("What?"), "image_bytes": text(png("red"), png("blue"))}, ALL)
    visual = outputs["input_ids"][0] >= spec.vocab_size
    extra = outputs["prompt_table_extra_ids"][0]
    assert not extra[~visual].any()
    first, second = extra[visual][:48], extra[visual][48:]
    assert len(set(first.tolist())) == len(set(second.tolist())) == 1
    assert 0 != first[0] != second[0] != 0


def test_tiles_are_made_only_where_they_are_wanted(preprocessor, text):
    assert TILES not in preprocessor.run({"text_input": text("x")}, [NUM_TILES, "input_ids"])


def test_without_an_image_the_ensemble_gets_a_tile_that_nothing_refers_to(preprocessor, spec, text):
    outputs = preprocessor.run({"text_input": text("x")}, ALL)
    assert outputs[NUM_TILES].tolist() == [0]
    assert outputs[TILES].shape == (1, 112, 112, 3)
    assert (outputs["input_ids"] < spec.vocab_size).all()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (1, 1, 1)),
        ({"temperature": 0.0, "top_k": 5}, (1, 1, 1)),
        ({"temperature": 0.5}, (0.5, 0, 1)),
        ({"temperature": 0.5, "top_k": 5, "top_p": 0.25}, (0.5, 5, 0.25)),
        ({"top_k": 5}, (1, 5, 1)),
    ],
)
def test_sampling_is_put_as_tensorrt_llm_reads_it(preprocessor, text, fields, expected):
    tensors = {name: np.array([value]) for name, value in fields.items()}
    outputs = preprocessor.run({"text_input": text("x"), **tensors}, ALL)
    seen = tuple(outputs[name].item() for name in ("temperature", "runtime_top_k", "runtime_top_p"))
    assert seen == expected


def test_a_request_that_samples_and_names_no_seed_has_one_of_its_own(preprocessor, text):
    def seed(**fields):
        tensors = {name: np.array([value]) for name, value in fields.items()}
        return preprocessor.run({"text_input": text("x"), **tensors}, ALL)["seed"].item()

    assert seed(temperature=1.0) != seed(temperature=1.0)
    assert seed(temperature=1.0, seed=np.uint64(0)) == 0
    assert seed(temperature=1.0, seed=np.uint64(2**64 - 1)) == 2**64 - 1
    assert seed() == 0  # greedy: none is needed


def test_a_prompt_beyond_the_engine_is_refused_with_its_length(preprocessor, text):
    with pytest.raises(PromptError, match="expected: at most 300"):
        preprocessor.run({"text_input": text("word " * 400)}, ALL)


def test_a_bad_image_is_named_by_its_place(preprocessor, text):
    with pytest.raises(ImageRejected, match="image 2 of 2"):
        preprocessor.run({"text_input": text("x"), "image_bytes": text(png("red"), "nothing")}, ALL)


def test_of_several_bad_images_the_first_is_named(spec, tokenizer, text):
    preprocessor = Preprocessor(replace(spec, max_images=4, cpu_threads=3), tokenizer)
    images = text(png("red"), "nothing", png("blue"), "nothing either")
    for _ in range(10):
        with pytest.raises(ImageRejected, match="image 2 of 4"):
            preprocessor.run({"text_input": text("x"), "image_bytes": images}, ALL)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_images_side_by_side_are_those_that_come_one_by_one(spec, tokenizer, text, photographs, threads):
    roomy = replace(spec, cpu_threads=threads, max_images=9, max_input_len=4096, max_seq_len=8192)
    preprocessor = Preprocessor(roomy, tokenizer)
    assert preprocessor.threads == threads
    files = []
    for photograph in list(photographs.values())[:6]:
        file = io.BytesIO()
        photograph.save(file, "PNG")
        files.append(file.getvalue())
    wanted = [TILES, NUM_TILES, "prompt_table_extra_ids"]
    each = [preprocessor.run({"text_input": text("x"), "image_bytes": text(file)}, wanted) for file in files]
    together = preprocessor.run({"text_input": text("x"), "image_bytes": text(*files)}, wanted)
    assert np.array_equal(together[TILES], np.concatenate([one[TILES] for one in each]))
    digests = [list(dict.fromkeys(one["prompt_table_extra_ids"][0].tolist())) for one in (*each, together)]
    assert [digest for one in digests[:-1] for digest in one if digest] == [digest for digest in digests[-1] if digest]


def most_at_a_time(monkeypatch, preprocessor, requests):
    """How many images are read at once at most, where all requests come at once and each reading takes a while."""
    now, most, lock = 0, 0, threading.Lock()

    def slowly(*args, **kwargs):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.05)
        with lock:
            now -= 1
        return read_image(*args, **kwargs)

    monkeypatch.setattr(preprocessing, "read_image", slowly)
    with ThreadPoolExecutor(len(requests)) as pool:
        answers = list(pool.map(lambda tensors: preprocessor.run(tensors, [NUM_TILES]), requests))
    assert len(answers) == len(requests)
    return most


@pytest.mark.parametrize(("size", "most"), [(2 * 224 * 112 * 8, 2), (1, 1)])
def test_no_more_images_are_read_at_once_than_there_is_memory_for(monkeypatch, spec, tokenizer, text, size, most):
    monkeypatch.setattr(preprocessing, "DECODING_BYTES", size)
    preprocessor = Preprocessor(replace(spec, cpu_threads=4), tokenizer)
    requests = [{"text_input": text("x"), "image_bytes": text(png("red"))}] * 6
    assert most_at_a_time(monkeypatch, preprocessor, requests) == most


def test_a_request_takes_the_memory_of_those_images_that_are_read_at_once(monkeypatch, spec, tokenizer, text):
    held = []

    class Room(DecodingRoom):
        def hold(self, size, watch):
            held.append(size)
            return super().hold(size, watch)

    monkeypatch.setattr(preprocessing, "DecodingRoom", Room)
    preprocessor = Preprocessor(replace(spec, cpu_threads=2, max_images=3, max_input_len=4096), tokenizer)
    images = text(png("red", (50, 50)), png("blue", (60, 60)), png("lime", (40, 40)))
    preprocessor.run({"text_input": text("x"), "image_bytes": images}, [NUM_TILES])
    preprocessor.run({"text_input": text("x")}, [NUM_TILES])
    assert held == [8 * (50 * 50 + 60 * 60), 0]


@pytest.mark.parametrize(("kept", "given_back"), [(8 * 224 * 112, 1), (2 * 8 * 224 * 112, 0)])
def test_the_memory_of_large_images_is_given_back_and_that_of_others_kept(
    monkeypatch, spec, tokenizer, text, kept, given_back
):
    calls = []
    monkeypatch.setattr(preprocessing, "KEPT_BYTES", kept)
    monkeypatch.setattr(preprocessing, "give_memory_back", lambda: calls.append(1))
    preprocessor = Preprocessor(replace(spec, cpu_threads=2), tokenizer)
    for images in (text(png("red"), png("blue")), text(png("red"))):
        preprocessor.run({"text_input": text("x"), "image_bytes": images}, [NUM_TILES])
    assert len(calls) == given_back


def test_max_tiles_of_the_request_is_kept(preprocessor, text):
    tensors = {"text_input": text("x"), "image_bytes": text(png("red")), "max_tiles": np.array([1])}
    assert preprocessor.run(tensors, ALL)[NUM_TILES].tolist() == [1]


def test_digests_depend_on_every_pixel_and_are_never_0():
    tiles = np.zeros((1, 4, 4, 3), np.uint8)
    other = tiles.copy()
    other[0, 3, 3, 2] = 1
    assert 0 < image_digest(tiles) < 2**63
    assert image_digest(tiles) != image_digest(other)


def test_an_answer_of_no_given_length_takes_the_room_that_the_prompt_leaves(spec, tokenizer, text):
    short = {"text_input": text("x")}
    roomy = Preprocessor(spec, tokenizer).run(short, ALL)
    assert roomy["request_output_len"].item() == spec.max_output_len
    tight_spec = replace(spec, max_seq_len=roomy["input_lengths"].item() + 7)
    assert Preprocessor(tight_spec, tokenizer).run(short, ALL)["request_output_len"].item() == 7


def test_an_answer_that_was_asked_for_and_finds_no_room_is_refused(spec, tokenizer, text):
    prompt = Preprocessor(spec, tokenizer).run({"text_input": text("x")}, ALL)["input_lengths"].item()
    tight = Preprocessor(replace(spec, max_seq_len=prompt + 7), tokenizer)
    tight.run({"text_input": text("x"), "max_tokens": np.array([7], np.int32)}, ALL)
    with pytest.raises(RequestError, match=rf"seen: {prompt} \+ 8 tokens; expected: at most {prompt + 7}"):
        tight.run({"text_input": text("x"), "max_tokens": np.array([8], np.int32)}, ALL)


def test_a_checkpoint_of_few_positions_bounds_prompt_and_answer(engine_dir, recipe):
    config = json.loads((engine_dir / "config.json").read_text())
    config["llm_config"]["max_position_embeddings"] = 200
    (engine_dir / "config.json").write_text(json.dumps(config))
    spec = ServingSpec.of(engine_dir, recipe)
    assert (spec.max_seq_len, spec.max_input_len) == (200, 199)


def test_images_of_a_request_that_was_given_up_are_not_read(preprocessor, text):
    seen = []

    def watch() -> None:
        seen.append(1)
        raise CancelledByClientError("gone")

    images = np.array([png("red"), png("blue")], dtype=np.object_)
    with pytest.raises(CancelledByClientError):
        preprocessor.run({"text_input": text("<image><image>"), "image_bytes": images}, ALL, watch)
    assert 1 <= len(seen) <= 2  # once before each image

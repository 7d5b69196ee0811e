"""`nvlm-trt generate` and `nvlm-trt verify` on a small fp32 engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.image import read_image
from nvlm_trt.model.prompt import build_prompt
from nvlm_trt.model.reference.decoder import DecoderReference
from nvlm_trt.model.reference.vision import VisionReference
from nvlm_trt.model.tiling import cut_tiles, plan_grid
from nvlm_trt.model.tokenizer import NvlmTokenizer

Run = Callable[..., Any]


def test_generate_answers_as_the_reference_does(
    nvlm_trt: Run, small_engine: Path, tiny_checkpoint: Path, photograph: Path
) -> None:
    words = ("generate", small_engine, "--prompt", "What is it?", "--image", photograph, "--max-tokens", 12)
    facts = nvlm_trt(*words, "--json").json
    assert {"text", "input_ids", "output_ids", "finish_reason", "tiles", "timings"} <= facts.keys()
    checkpoint, tokenizer = Checkpoint.open(tiny_checkpoint), NvlmTokenizer.load(tiny_checkpoint)
    image = read_image(photograph.read_bytes())
    tiles = cut_tiles(image, plan_grid(image.width, image.height, max_tiles=6, tile_size=112), 112)
    prompt = build_prompt(tokenizer, 16, "What is it?", tiles=[len(tiles)])
    table = VisionReference(checkpoint)(tiles).reshape(-1, checkpoint.config.decoder.hidden_size)
    ids = prompt.decoder_ids(checkpoint.config.decoder.vocab_size)
    expected = DecoderReference(checkpoint).greedy(ids, table, max_tokens=12, stop_ids=[tokenizer.eos_id])
    assert facts["input_ids"] == list(prompt.input_ids)
    assert facts["output_ids"] == expected
    assert facts["tiles"] == [7]
    assert facts["finish_reason"] in ("stop", "length")


def test_generate_streams_the_same_text(nvlm_trt: Run, small_engine: Path, tmp_path: Path) -> None:
    history = tmp_path / "history.json"
    history.write_text(json.dumps([["Who?", "Me."]]))
    words = ("generate", small_engine, "--prompt", "Why?", "--history", history, "--max-tokens", 10)
    whole = nvlm_trt(*words)
    assert whole.code == 0
    assert nvlm_trt(*words, "--stream").out == whole.out
    assert nvlm_trt(*words, "--json").json["text"] + "\n" == whole.out


def test_generate_samples_with_a_seed(nvlm_trt: Run, small_engine: Path) -> None:
    words = ("generate", small_engine, "--prompt", "Why?", "--max-tokens", 10, "--temperature", 2.0, "--top-k", 50)
    first, again, other = (nvlm_trt(*words, "--seed", seed, "--json").json["output_ids"] for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-tokens", "0"], "max_tokens is out of range"),
        (["--temperature", "nan"], "temperature"),
        (["--stream", "--json"], "exclude each other"),
        (["--max-tokens", "100000"], "longer than the engine"),
        (["--image", "absent.png"], "absent.png"),
        (["--history", "absent.json"], "absent.json"),
    ],
)
def test_generate_refuses_bad_requests(nvlm_trt: Run, small_engine: Path, words: list[str], message: str) -> None:
    shown = nvlm_trt("generate", small_engine, "--prompt", "Why?", *words)
    assert shown.code == 2
    assert message in shown.err
    assert "Traceback" not in shown.err


def test_generate_names_the_image_that_it_refuses(
    nvlm_trt: Run, small_engine: Path, photograph: Path, tmp_path: Path
) -> None:
    for name, data, message in (
        ("empty.png", b"", "the image is empty"),
        ("cut.png", photograph.read_bytes()[:9000], "the image is damaged"),
    ):
        bad = tmp_path / name
        bad.write_bytes(data)
        shown = nvlm_trt("generate", small_engine, "--prompt", "Why?", "--image", photograph, "--image", bad)
        assert (shown.code, f"{bad}: {message}" in shown.err) == (2, True)


def test_generate_and_verify_need_an_engine_directory(nvlm_trt: Run, tmp_path: Path) -> None:
    for words in (["generate", tmp_path, "--prompt", "Why?"], ["verify", tmp_path]):
        shown = nvlm_trt(*words)
        assert shown.code == 2
        assert shown.err.startswith("error: ")


def test_verify_passes_every_gate_of_a_sound_fp32_engine(nvlm_trt: Run, small_engine: Path) -> None:
    shown = nvlm_trt("verify", small_engine, "--json")
    assert shown.code == 0, shown.out
    written = shown.json
    assert written["ok"] is True
    parts = {"prompt", "vision", "decoder", "logits", "canary", "answer", "sharded"}
    assert {check["part"] for check in written["checks"]} == parts
    assert written["figures"]["vision"]["max_rel_error"] < 1e-4
    assert written["figures"]["decoder"]["tokens_differing"] == 0


def test_verify_fails_an_engine_of_other_weights(nvlm_trt: Run, small_engine: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    shutil.copytree(small_engine, wrong)
    weights = wrong / "decoder" / "cpu" / "model.bin"
    values = np.fromfile(weights, np.float32)
    weight = (np.abs(values) > 1e-3) & (np.abs(values) < 1)  # the file holds small integers too
    values[weight] *= 1.01
    values.tofile(weights)
    shown = nvlm_trt("verify", wrong, "--prompts", 1, "--tokens", 2, "--json")
    assert shown.code == 1
    failed = {(check["part"], check["figure"]) for check in shown.json["checks"] if not check["ok"]}
    assert ("decoder", "max_rel_error") in failed
    assert shown.json["ok"] is False

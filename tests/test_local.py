"""An engine directory in this process, from the bytes of a photograph to text."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from nvlm_trt.decoder.build_cpu import build_decoder_cpu
from nvlm_trt.decoder.convert import convert_decoder
from nvlm_trt.decoder.precision import FP32
from nvlm_trt.decoder.request import SamplingParams
from nvlm_trt.decoder.stopping import answer_text
from nvlm_trt.errors import EngineError, ImageRejected, PromptError, RequestError
from nvlm_trt.local import LocalEngine
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.image import read_image
from nvlm_trt.model.reference.decoder import DecoderReference
from nvlm_trt.model.reference.vision import VisionReference
from nvlm_trt.model.tiling import cut_tiles, plan_grid
from nvlm_trt.model.tokenizer import FILES
from nvlm_trt.vision.build_cpu import build_vision_cpu
from nvlm_trt.vision.export import export_vision

MAX_TILES, TILE = 4, 112
TIE = 1e-3


@pytest.fixture(scope="module")
def engine_dir(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fp32 engine directory of the tiny checkpoint, made by the stages' own functions."""
    root = tmp_path_factory.mktemp("engine")
    for name in ("vision/cpu", "decoder/checkpoint", "decoder/cpu", "tokenizer"):
        (root / name).mkdir(parents=True)
    recipe = {
        "name": "tiny",
        "target": "cpu",
        "vision_precision": "fp32",
        "decoder_precision": "fp32",
        "max_tiles": MAX_TILES,
        "max_images": 2,
        "max_output_len": 64,
        "image_limits": {"max_side": 4000},
        "cpu_threads": 1,
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for name in FILES:
        (root / "tokenizer" / name).write_bytes((tiny_checkpoint / name).read_bytes())
    (root / "config.json").write_bytes((tiny_checkpoint / "config.json").read_bytes())
    checkpoint = Checkpoint.open(tiny_checkpoint)
    export_vision(checkpoint, root / "vision", precision="fp32", output_dtype="fp32")
    build_vision_cpu(root / "vision" / "vision.onnx", root / "vision" / "cpu", precision="fp32")
    convert_decoder(checkpoint, root / "decoder" / "checkpoint", tp=2, pp=1, precision=FP32)
    build_decoder_cpu(
        root / "decoder" / "checkpoint",
        root / "decoder" / "cpu",
        precision="fp32",
        max_batch_size=4,
        max_seq_len=1024,
        max_prompt_table_rows=2 * (MAX_TILES + 1) * 16,
    )
    return root


@pytest.fixture(scope="module")
def local(engine_dir: Path) -> Iterator[LocalEngine]:
    with LocalEngine(engine_dir) as engine:
        yield engine


def png(image: Image.Image, size: tuple[int, int] = (400, 300)) -> bytes:
    file = io.BytesIO()
    image.resize(size).save(file, "PNG")
    return file.getvalue()


def tiles_of(data: bytes) -> np.ndarray:
    image = read_image(data)
    return cut_tiles(image, plan_grid(*image.size, max_tiles=MAX_TILES, tile_size=TILE), TILE)


@pytest.mark.parametrize(
    ("question", "names"),
    [
        ("What is a cat?", []),
        ("What do you see?", ["chelsea"]),
        ("Compare <image> with <image>, please.", ["astronaut", "coffee"]),
    ],
)
def test_an_answer_equals_the_torch_reference_token_by_token(local, tiny_checkpoint, photographs, question, names):
    images = [png(photographs[name], (500 - 90 * place, 300)) for place, name in enumerate(names)]
    checkpoint = Checkpoint.open(tiny_checkpoint)
    result = local.generate(question, SamplingParams(64), images=images)
    rows = [VisionReference(checkpoint)(tiles_of(data)) for data in images]
    table = torch.cat(rows).reshape(-1, checkpoint.config.decoder.hidden_size) if rows else None
    ids = np.array(result.input_ids, np.int32)
    visual = ids == local.tokenizer.vision_pad_id
    ids[visual] = checkpoint.config.decoder.vocab_size + np.arange(visual.sum())
    steps = DecoderReference(checkpoint).greedy_steps(ids, table, max_tokens=64, stop_ids=[local.tokenizer.eos_id])
    assert len(result.output_ids) == len(steps) > 5
    for seen, (expected, logits) in zip(result.output_ids, steps, strict=True):
        if seen != expected:
            assert float(logits[expected] - logits[seen]) < TIE
            break
    assert result.num_visual_tokens == visual.sum() == 16 * sum(result.tiles)
    assert result.tiles == tuple(len(tiles_of(data)) for data in images)


def test_an_image_changes_the_answer(local, photographs):
    answers = {local.generate("What?", SamplingParams(32), images=[png(photographs[name])]).output_ids
               for name in ("chelsea", "coffee")}  # fmt: skip
    assert len(answers | {local.generate("What?", SamplingParams(32)).output_ids}) == 3


def test_the_pieces_of_a_stream_are_the_text_of_the_whole(local, photographs):
    sampling = SamplingParams(64, temperature=1.5, seed=3)
    images = [png(photographs["coffee"])]
    stream = local.stream("Describe it.", sampling, images=images)
    pieces = list(stream)
    whole = local.generate("Describe it.", sampling, images=images)
    assert len(pieces) > 3
    assert "".join(pieces) == stream.result.text == whole.text == answer_text(local.tokenizer, whole.output_ids)
    assert stream.result.output_ids == whole.output_ids


def test_timings_account_for_the_parts(local, photographs):
    timings = local.generate("What?", SamplingParams(16), images=[png(photographs["chelsea"])]).timings
    assert timings.preprocess_s > 0
    assert timings.vision_s > 0
    assert timings.ttft_s > timings.preprocess_s + timings.vision_s
    assert timings.tokens_per_s > 0


def test_a_stop_text_ends_the_answer_early_with_reason_stop(local):
    whole = local.generate("Tell me a story.", SamplingParams(64))
    middle = len(whole.text) // 2
    stop = whole.text[middle : middle + 3]
    result = local.generate("Tell me a story.", SamplingParams(64, stop=(stop,)))
    assert result.finish_reason == "stop"
    assert result.text == whole.text[: whole.text.index(stop)].rstrip()
    assert len(result.output_ids) < len(whole.output_ids)
    assert result.output_ids == whole.output_ids[: len(result.output_ids)]


def test_a_closed_stream_ends_as_cancelled(local):
    stream = local.stream("Tell me a story.", SamplingParams(900))
    next(iter(stream))
    stream.close()
    assert stream.result.finish_reason == "cancelled"
    assert len(stream.result.output_ids) < 900


def test_without_sampling_the_recipe_bounds_the_answer(local):
    result = local.generate("Count.")
    assert len(result.output_ids) <= 64
    assert result.finish_reason in ("length", "stop")


def test_what_cannot_be_answered_is_refused_with_one_sentence(local, photographs):
    image = png(photographs["coffee"])
    with pytest.raises(RequestError, match="too many images; seen: 3; expected: at most 2"):
        local.generate("?", images=[image] * 3)
    with pytest.raises(PromptError, match="more images"):
        local.generate("only <image>", images=[image] * 2)
    with pytest.raises(ImageRejected, match="not an image"):
        local.generate("?", images=[b"no image"])
    with pytest.raises(ImageRejected, match="too long"):
        local.generate("?", images=[png(photographs["coffee"], (4001, 4))])
    with pytest.raises(PromptError, match="longer than the engine"):
        local.generate("word " * 2000)


def test_an_incomplete_engine_directory_is_refused(engine_dir: Path, tmp_path: Path):
    with pytest.raises(EngineError, match=r"no recipe\.yaml"):
        LocalEngine(tmp_path)


def test_an_engine_of_the_gpu_target_is_not_called_incomplete(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text("name: r\ntarget: gpu\n")
    with pytest.raises(EngineError, match=r"gpu target answers through its server; .*start it with nvlm-trt serve"):
        LocalEngine(tmp_path)

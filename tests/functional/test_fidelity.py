"""The fp32 recipe against the torch reference: the same tokens, in this process and through the server.

Of a random checkpoint: its answers are long and depend on every weight.

Real tiles of 448 pixels, photographs of several aspect ratios, ten prompts with no, one and two images.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from nvlm_trt.client import NvlmClient, Options
from nvlm_trt.decoder.request import SamplingParams
from nvlm_trt.decoder.stopping import answer_text
from nvlm_trt.host.ports import Ports
from nvlm_trt.host.server import TritonServer
from nvlm_trt.local import LocalEngine
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.decoder import DecoderReference
from nvlm_trt.model.reference.vision import VisionReference
from nvlm_trt.pipeline.build import BuildRequest, build
from nvlm_trt.pipeline.progress import reporter_for

pytestmark = pytest.mark.timeout(900)
"""With a build and the reference's answers in its setup, which a busy machine draws out."""

STEPS = 64
TIE = 1e-3
RECIPE = Path(__file__).parents[2] / "build" / "recipes" / "nvlm-d-mini-cpu-fp32.yaml"


@dataclass(frozen=True)
class Case:
    """A question and the pictures (name, width, height) that it is about."""

    question: str
    pictures: tuple[tuple[str, int, int], ...] = ()


CASES = (
    Case("Hello, who are you?"),
    Case("Write the word <|im_end|> and then <tile_1>."),
    Case("What is in this picture?", (("coffee", 600, 400),)),
    Case("<image>\nPlease describe the image shortly.", (("astronaut", 512, 512),)),
    Case("Look: <image> What is it?", (("chelsea", 451, 150),)),
    Case("Read it.", (("page", 384, 191),)),
    Case("How tall is it?", (("rocket", 200, 427),)),
    Case("Compare <image> with <image>.", (("coffee", 400, 400), ("rocket", 640, 427))),
    Case("<image><image>", (("retina", 900, 900), ("moon", 512, 128))),
    Case("Which is older?", (("camera", 512, 384), ("chelsea", 300, 300))),
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fp32")
    recipe = folder / "random.yaml"
    # Random weights answer no question right: the gate on a task would compare noise, for two minutes.
    fields = yaml.safe_load(RECIPE.read_text()) | {"checkpoint": "synth:tiny", "gates": {"task": None}}
    recipe.write_text(yaml.safe_dump(fields))
    build(BuildRequest(str(recipe), output=folder / "engine"), reporter_for(silent=True))
    return folder / "engine"


@pytest.fixture(scope="module")
def engine(built: Path) -> Iterator[LocalEngine]:
    with LocalEngine(built) as one:
        yield one


@pytest.fixture(scope="module")
def checkpoint(built: Path) -> Checkpoint:
    return Checkpoint.open(built / "checkpoint")


@pytest.fixture(scope="module")
def files(photographs: dict[str, Image.Image]) -> dict[tuple[str, int, int], bytes]:
    encoded = {}
    for case in CASES:
        for name, width, height in case.pictures:
            file = io.BytesIO()
            photographs[name].crop((0, 0, width, height)).save(file, "PNG")
            encoded[name, width, height] = file.getvalue()
    return encoded


@pytest.fixture(scope="module")
def expected(
    engine: LocalEngine, checkpoint: Checkpoint, files: dict[tuple[str, int, int], bytes]
) -> list[list[tuple[int, torch.Tensor]]]:
    """The reference's own tokens and logits, from its own prompt table."""
    vision, decoder = VisionReference(checkpoint), DecoderReference(checkpoint)
    answers = []
    for case in CASES:
        images = [files[picture] for picture in case.pictures]
        prepared = engine.prepare(case.question, images=images)
        table = None
        if images:
            tiles = np.concatenate([engine.tiles(data) for data in images])
            table = vision(tiles).flatten(0, 1)
            assert prepared.table is not None
            error = (torch.from_numpy(prepared.table) - table).abs().max() / table.abs().max()
            assert error < 1e-4
        stop = [engine.tokenizer.eos_id]
        answers.append(decoder.greedy_steps(prepared.decoder_ids, table, max_tokens=STEPS, stop_ids=stop))
    return answers


def agreed(steps: list[tuple[int, torch.Tensor]], answer: tuple[int, ...]) -> int:
    """Tokens up to the end, or up to the first near tie of the reference after which the two went apart."""
    for index, (token, logits) in enumerate(steps):
        if index >= len(answer) or answer[index] != token:
            best = logits.topk(2).values
            assert best[0] - best[1] < TIE, f"token {index} differs and is no tie"
            return index
    assert len(answer) == len(steps)
    return len(steps)


def test_the_engine_gives_the_references_tokens(engine, files, expected):
    checked = 0
    for case, steps in zip(CASES, expected, strict=True):
        images = [files[picture] for picture in case.pictures]
        result = engine.generate(case.question, SamplingParams(STEPS), images=images)
        checked += agreed(steps, result.output_ids)
    steps_in_all = sum(len(steps) for steps in expected)
    assert steps_in_all > 6 * STEPS, "some answers end early, at an end token"
    assert checked > 0.8 * steps_in_all, "few answers were cut short by a tie"


def test_the_server_gives_the_references_text(built, engine, files, expected):
    with TritonServer(built, ports=Ports(0, 0, 0)) as server, NvlmClient(server.grpc_url) as client:
        for case, steps in zip(CASES, expected, strict=True):
            images = [files[picture] for picture in case.pictures]
            options = Options(max_tokens=STEPS)
            answer = client.generate(case.question, images=images, options=options)
            assert answer.text == answer_text(engine.tokenizer, [token for token, _ in steps])
            with client.stream(case.question, images=images, options=options) as stream:
                assert "".join(stream) == answer.text

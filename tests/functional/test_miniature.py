"""nvlm-d-mini, the checkpoint that ships: it reads, in every precision that its recipes have, and as its card says."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nvlm_trt.client import NvlmClient, Options
from nvlm_trt.decoder.request import SamplingParams
from nvlm_trt.eval.tasks import read_tasks
from nvlm_trt.host.ports import Ports
from nvlm_trt.host.server import TritonServer
from nvlm_trt.local import LocalEngine
from nvlm_trt.miniature.shipped import FOLDER, GATE_TASK
from nvlm_trt.miniature.tasks import ASKED
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.decoder import DecoderReference
from nvlm_trt.model.reference.vision import VisionReference
from nvlm_trt.pipeline.build import BuildRequest, build
from nvlm_trt.pipeline.progress import reporter_for

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "examples" / "cup.png"
RIGHT = {
    "What is the tiny number?": "395",
    "What colour is the star?": "red",
    "Where is the diamond?": "top right",
    "What shape is at the top left?": "star",
    "Which tile holds the tiny number?": "tile 4",
}
ANSWER = Options(max_tokens=16)

pytestmark = pytest.mark.timeout(900)
"""With the build in its setup, which a busy machine draws out."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default recipe, gates and packaging included."""
    out = tmp_path_factory.mktemp("miniature") / "engine"
    build(BuildRequest(str(ROOT / "build" / "recipes" / "nvlm-d-mini-cpu.yaml"), output=out), reporter_for(silent=True))
    return out


@pytest.fixture(scope="module")
def engine(built: Path) -> Iterator[LocalEngine]:
    with LocalEngine(built) as one:
        yield one


@pytest.mark.parametrize("question", RIGHT)
def test_the_default_engine_answers_right(engine: LocalEngine, question: str) -> None:
    answer = engine.generate(question, SamplingParams(16), images=[PICTURE.read_bytes()])
    assert answer.text == RIGHT[question]


def test_the_server_answers_right(built: Path) -> None:
    with TritonServer(built, ports=Ports(0, 0, 0)) as server, NvlmClient(server.grpc_url) as client:
        for question, right in RIGHT.items():
            assert client.generate(question, images=[PICTURE], options=ANSWER).text == right
        assert client.generate("What is 7 plus 8?", options=ANSWER).text == "15"
        assert client.generate("Repeat: RIVER 40", options=ANSWER).text == "RIVER 40"


def test_without_its_tiles_the_tiny_number_cannot_be_read(engine: LocalEngine) -> None:
    small = Image.open(PICTURE).resize((112, 112), Image.Resampling.BICUBIC)
    answer = engine.generate("What is the tiny number?", SamplingParams(16), images=[_png(small)])
    assert answer.text != RIGHT["What is the tiny number?"]


def test_most_of_the_gates_questions_are_answered_right_and_as_the_reference_answers(engine: LocalEngine) -> None:
    samples = read_tasks(GATE_TASK)
    checkpoint = Checkpoint.open(FOLDER)
    vision, decoder = VisionReference(checkpoint), DecoderReference(checkpoint)
    right, same = 0, 0
    for sample in samples:
        images = [path.read_bytes() for path in sample.images]
        prepared = engine.prepare(sample.question, images=images, history=sample.history)
        table = vision(np.concatenate([engine.tiles(data) for data in images])).flatten(0, 1) if images else None
        reference = decoder.greedy(prepared.decoder_ids, table, max_tokens=16, stop_ids=[engine.tokenizer.eos_id])
        answer = engine.generate(sample.question, SamplingParams(16), images=images, history=sample.history)
        same += answer.output_ids == tuple(reference)
        right += answer.text in sample.answers
    assert same > 0.95 * len(samples)
    assert right > 0.85 * len(samples)


def test_the_gates_questions_are_of_every_kind() -> None:
    assert {sample.category for sample in read_tasks(GATE_TASK)} == set(ASKED)


def test_the_checkpoint_is_the_one_of_its_card() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    shards = sorted(FOLDER.glob("*.safetensors"))
    for shard in shards:
        assert hashlib.sha256(shard.read_bytes()).hexdigest() in card
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 40e6


def test_the_checkpoint_has_the_layout_of_the_release() -> None:
    index = json.loads((FOLDER / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in FOLDER.glob("*.safetensors")}
    checkpoint = Checkpoint.open(FOLDER)
    checkpoint.check_dummy_heads()
    raw = json.loads((FOLDER / "config.json").read_text())
    assert raw["architectures"] == ["NVLM_D"]
    assert raw["llm_config"]["model_type"] == "llama"  # a trap of the release


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()

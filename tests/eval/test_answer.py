"""The engine, a server and the torch reference as those who answer, and the ablations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from nvlm_trt.client import Answer as ServerAnswer
from nvlm_trt.client import NvlmClient
from nvlm_trt.client.retry import Backoff
from nvlm_trt.decoder.build_cpu import build_decoder_cpu
from nvlm_trt.decoder.convert import convert_decoder
from nvlm_trt.decoder.precision import FP32
from nvlm_trt.errors import ImageRejected, RequestError, UserError
from nvlm_trt.eval.answer import AnswerOptions, EngineAnswerer, ServerAnswerer
from nvlm_trt.eval.reference import ReferenceAnswerer
from nvlm_trt.eval.tasks import Sample
from nvlm_trt.local import LocalEngine
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.prompt import build_prompt
from nvlm_trt.model.tokenizer import FILES, NvlmTokenizer
from nvlm_trt.recipe import BuildRecipe
from nvlm_trt.serving.faults import UnavailableError
from nvlm_trt.vision.build_cpu import build_vision_cpu
from nvlm_trt.vision.export import export_vision

RECIPE = BuildRecipe(
    name="tiny", target="cpu", vision_precision="fp32", decoder_precision="fp32", max_tiles=4, max_images=2,
    max_output_len=12, cpu_threads=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory):
    """An fp32 engine of the tiny checkpoint, made by the stages' own functions."""
    root = tmp_path_factory.mktemp("engine")
    for name in ("vision/cpu", "decoder/checkpoint", "decoder/cpu", "tokenizer"):
        (root / name).mkdir(parents=True)
    (root / "recipe.yaml").write_text(yaml.safe_dump(RECIPE.model_dump(mode="json")))
    for name in FILES:
        (root / "tokenizer" / name).write_bytes((tiny_checkpoint / name).read_bytes())
    (root / "config.json").write_bytes((tiny_checkpoint / "config.json").read_bytes())
    checkpoint = Checkpoint.open(tiny_checkpoint)
    export_vision(checkpoint, root / "vision", precision="fp32", output_dtype="fp32")
    build_vision_cpu(root / "vision" / "vision.onnx", root / "vision" / "cpu", precision="fp32")
    convert_decoder(checkpoint, root / "decoder" / "checkpoint", tp=1, pp=1, precision=FP32)
    build_decoder_cpu(
        root / "decoder" / "checkpoint", root / "decoder" / "cpu", precision="fp32", max_batch_size=2,
        max_seq_len=512, max_prompt_table_rows=2 * 5 * 16,
    )  # fmt: skip
    with LocalEngine(root) as local:
        yield local


@pytest.fixture(scope="module")
def photo(photographs: dict[str, Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photograph that is cut into 2 x 2 tiles and a thumbnail."""
    path = tmp_path_factory.mktemp("photo") / "coffee.png"
    photographs["coffee"].resize((224, 224)).save(path)
    return path


@pytest.fixture(scope="module")
def asked(photo: Path) -> Sample:
    return Sample("7", (photo,), "And now?", (("What is <image>?", "A cup."),), ("cup",), "exact", system="Be brief.")


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> ReferenceAnswerer:
    return ReferenceAnswerer(tiny_checkpoint, recipe=RECIPE)


def test_engine_and_reference_answer_alike(engine, reference, asked):
    for sample in (asked, Sample("8", (), "What is a cat?", (), ("x",), "exact", max_tokens=5)):
        ours, theirs = EngineAnswerer(engine).answer(sample), reference.answer(sample)
        assert ours.text == theirs.text != ""
        assert ours.output_tokens == theirs.output_tokens == (sample.max_tokens or 12)
        assert ours.seconds > 0


def test_history_system_and_image_reach_both(engine, reference, asked):
    changes = {"history": (("What is <image>?", "Nothing."),), "system": None, "images": (asked.images[0],) * 2}
    texts = {EngineAnswerer(engine).answer(asked).text}
    for key, value in changes.items():
        parts = {name: getattr(asked, name) for name in asked.__slots__} | {key: value}
        if key == "images":
            parts["question"] = "And <image>?"
        changed = Sample(**parts)
        assert EngineAnswerer(engine).answer(changed).text == reference.answer(changed).text
        texts.add(reference.answer(changed).text)
    assert len(texts) == 4


def test_fewer_tiles_change_the_answer_and_the_option_goes_before_the_sample(engine, tiny_checkpoint, asked):
    whole = EngineAnswerer(engine).answer(asked)
    narrow = EngineAnswerer(engine, AnswerOptions(max_tiles=1)).answer(asked)
    own = Sample(asked.id, asked.images, asked.question, asked.history, asked.answers, "exact", system="Be brief.",
                 max_tiles=1)  # fmt: skip
    assert narrow.text == EngineAnswerer(engine).answer(own).text != whole.text
    assert EngineAnswerer(engine, AnswerOptions(max_tiles=4)).answer(own).text == whole.text
    again = ReferenceAnswerer(tiny_checkpoint, options=AnswerOptions(max_tiles=1), recipe=RECIPE)
    assert again.answer(asked).text == narrow.text


def test_tags_can_be_left_out_or_shuffled(engine, tiny_checkpoint, asked):
    texts = {}
    for tags in ("kept", "removed", "shuffled"):
        options = AnswerOptions(tags=tags)
        texts[tags] = EngineAnswerer(engine, options).answer(asked).text
        assert ReferenceAnswerer(tiny_checkpoint, options=options, recipe=RECIPE).answer(asked).text == texts[tags]
    assert len(set(texts.values())) == 3


def test_shuffled_tags_are_a_seeded_permutation_inside_each_image(tiny_checkpoint, asked):
    tokenizer = NvlmTokenizer.load(tiny_checkpoint)

    def tags(seed: int, sample: Sample = asked) -> list[str]:
        options = AnswerOptions(tags="shuffled", seed=seed)
        prompt = build_prompt(tokenizer, 1, "<image><image>", tiles=[7, 3], tags=options.tags_of(sample))
        text = prompt.text.split("<|im_start|>user\n")[1]
        return [part.rpartition("<Image>")[2] for part in text.split("<|vision_pad|>")[:-1]]

    own = [*(f"<tile_{number}>" for number in range(1, 7)), "<tile_global_thumbnail>"]
    shuffled = tags(0)
    assert sorted(shuffled[:7]) == sorted(own) != sorted(shuffled[3:])
    assert shuffled[:7] != own
    assert sorted(shuffled[7:]) == sorted(["<tile_1>", "<tile_2>", "<tile_global_thumbnail>"])
    assert shuffled[7:] != ["<tile_1>", "<tile_2>", "<tile_global_thumbnail>"]
    assert tags(0) == shuffled
    assert len({tuple(tags(seed)) for seed in range(5)}) == 5


def test_a_prompt_without_tags_has_nothing_between_the_visual_tokens(tiny_checkpoint, asked):
    tags = AnswerOptions(tags="removed").tags_of(asked)
    prompt = build_prompt(NvlmTokenizer.load(tiny_checkpoint), 2, "Why?", tiles=[3], tags=tags)
    assert "<Image>" + "<|vision_pad|>" * 6 + "</Image>\nWhy?" in prompt.text


def test_one_tile_alone_keeps_its_tag_when_tags_are_shuffled(asked):
    assert list(AnswerOptions(tags="shuffled").tags_of(asked)(1)) == ["<tile_global_thumbnail>"]


def test_bfloat16_is_another_arithmetic(tiny_checkpoint, reference, asked):
    """The tiny model is random: that its logits move enough to show is luck, so the table is compared instead."""
    seen = []
    for dtype in (torch.float32, torch.bfloat16):

        class Spy:
            def greedy(self, _ids, table, **_limits):
                seen.append(table)
                return []

        ReferenceAnswerer(tiny_checkpoint, dtype, recipe=RECIPE, decoder=Spy()).answer(asked)
    assert [table.dtype for table in seen] == [torch.float32, torch.bfloat16]
    assert seen[0].shape == (5 * 16, 128)
    difference = (seen[0] - seen[1].float()).abs().max() / seen[0].abs().max()
    assert 0 < difference < 0.1


def test_what_cannot_be_answered_is_refused(engine, reference, asked, tmp_path):
    missing = Sample("1", (tmp_path / "none.png",), "?", (), ("x",), "exact")
    damaged = tmp_path / "bad.png"
    damaged.write_bytes(b"no image")
    for answerer in (EngineAnswerer(engine), reference):
        with pytest.raises(ImageRejected, match="cannot be read"):
            answerer.answer(missing)
        with pytest.raises(ImageRejected, match="not an image"):
            answerer.answer(Sample("1", (damaged,), "?", (), ("x",), "exact"))
    with pytest.raises(RequestError, match="max_tiles is out of range; seen: 5; expected: 1 to 4"):
        EngineAnswerer(engine, AnswerOptions(max_tiles=5)).answer(asked)


def test_a_server_is_sent_the_sample_and_the_options(asked, monkeypatch):
    sent = {}

    def generate(_self, prompt, **arguments):
        sent.update(arguments, prompt=prompt)
        return ServerAnswer("a cup", "stop", 100, 2)

    monkeypatch.setattr(NvlmClient, "generate", generate)
    with NvlmClient("127.0.0.1:1") as client:
        answer = ServerAnswerer(client, AnswerOptions(max_tokens=9, max_tiles=2)).answer(asked)
    assert (answer.text, answer.output_tokens) == ("a cup", 2)
    assert sent["prompt"] == "And now?"
    assert (sent["images"], sent["history"], sent["system"]) == (asked.images, asked.history, "Be brief.")
    assert (sent["options"].max_tokens, sent["options"].max_tiles) == (9, 2)


@pytest.mark.parametrize(("busy", "answers"), [(2, True), (3, False)])
def test_a_busy_server_is_asked_again_as_often_as_the_backoff_says(asked, monkeypatch, busy, answers):
    said = [UnavailableError("the server is busy")] * busy + [ServerAnswer("a cup", "stop", 100, 2)]

    def generate(_self, _prompt, **_arguments):
        match said.pop(0):
            case ServerAnswer() as answer:
                return answer
            case error:
                raise error

    monkeypatch.setattr(NvlmClient, "generate", generate)
    with NvlmClient("127.0.0.1:1") as client:
        answerer = ServerAnswerer(client, backoff=Backoff(attempts=3, first=0.001))
        if answers:
            assert answerer.answer(asked).text == "a cup"
        else:
            with pytest.raises(UnavailableError, match="busy"):
                answerer.answer(asked)


def test_a_server_writes_its_own_tags():
    with NvlmClient("127.0.0.1:1") as client, pytest.raises(UserError, match="seen: tags removed"):
        ServerAnswerer(client, AnswerOptions(tags="removed"))

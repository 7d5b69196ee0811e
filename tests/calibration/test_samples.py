"""Calibration samples: what a JSONL line may hold, what is refused and how, and the set that the project ships."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from nvlm_trt.calibration.samples import SHIPPED_SAMPLES, read_samples
from nvlm_trt.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "grey.png")
    return tmp_path


def written(folder: Path, *lines: object) -> Path:
    path = folder / "samples.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def said(*contents: str, first: str = "user") -> list[dict[str, str]]:
    turns = ["user", "assistant"] * len(contents)
    roles = turns if first == "user" else ["system", *turns]
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


def test_a_text_is_a_question(folder: Path) -> None:
    (sample,) = read_samples(written(folder, {"text": "What is it?", "images": ["images/grey.png"]}))
    assert (sample.question, sample.answer, sample.history, sample.system) == ("What is it?", None, (), None)
    assert sample.images == ((folder / "images" / "grey.png").resolve(),)


def test_messages_are_a_conversation_with_or_without_a_last_answer(folder: Path) -> None:
    path = written(
        folder,
        {"messages": said("Be brief.", "q1", "a1", "q2", "a2", first="system")},
        {"messages": said("q1", "a1", "q2")},
        {"messages": said("q")},
    )
    full, opened, single = read_samples(path)
    assert (full.system, full.history, full.question, full.answer) == ("Be brief.", (("q1", "a1"),), "q2", "a2")
    assert (opened.system, opened.history, opened.question, opened.answer) == (None, (("q1", "a1"),), "q2", None)
    assert (single.history, single.question, single.answer) == ((), "q", None)


def test_blank_lines_are_skipped_and_lines_keep_their_numbers(folder: Path) -> None:
    samples = read_samples(written(folder, {"text": "a"}, "", "   ", {"text": "b"}))
    assert [sample.where for sample in samples] == ["samples.jsonl line 1", "samples.jsonl line 4"]


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85", "\u3000"])
def test_a_text_may_hold_other_ends_of_lines_than_the_files(folder: Path, end: str) -> None:
    line = json.dumps({"text": f"a{end}b"}, ensure_ascii=False)
    samples = read_samples(written(folder, line, {"text": "c"}))
    assert [(sample.where, sample.question) for sample in samples] == [
        ("samples.jsonl line 1", f"a{end}b"),
        ("samples.jsonl line 2", "c"),
    ]


def test_a_count_takes_the_first_ones_and_does_not_look_at_others(folder: Path) -> None:
    path = written(folder, {"text": "a"}, {"text": "b"}, "seen no JSON")
    assert [sample.question for sample in read_samples(path, 2)] == ["a", "b"]
    assert len(read_samples(written(folder, {"text": "a"}), 5)) == 1


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "seen no JSON"),
        ("[1]", "seen list, expected an object"),
        ('{"text": "a", "txet": 1}', "txet: Extra inputs"),
        ('{"text": 7}', "text: Input should be a valid string, seen: '7'"),
        ('{"text": ""}', "text: String should have at least 1 character"),
        ('{"text": "\\ud800"}', "text: "),
        ("{}", "text or messages"),
        ('{"text": "a", "messages": [{"role": "user", "content": "b"}]}', "text or messages, and not both"),
        ('{"messages": []}', "messages: List should have at least 1 item"),
        ('{"messages": [{"role": "robot", "content": "b"}]}', "messages.0.role: "),
        ('{"messages": [{"role": "user"}]}', "messages.0.content: Field required"),
        ('{"messages": [{"role": "user", "content": [1]}]}', "messages.0.content: "),
        ('{"messages": [{"role": "assistant", "content": "b"}]}', "seen role assistant, expected user at place 0"),
        ('{"messages": [{"role": "system", "content": "b"}]}', "there is no question"),
        ('{"text": "a", "images": "images/grey.png"}', "images: Input should be a valid list"),
        (
            '{"text": "a", "images": ["images/none.png"]}',
            "images.0: seen 'images/none.png', expected a file that exists",
        ),
        ('{"text": "a", "images": ["images"]}', "images.0: seen 'images', expected a file that exists"),
        ('{"text": "a", "images": ["../secret.png"]}', "images.0: seen '../secret.png', expected a file name relative"),
        ('{"text": "a", "images": ["/etc/hostname"]}', "images.0: seen '/etc/hostname', expected a file name relative"),
        ('{"text": "a", "images": ["https://example.org/a.png"]}', "expected a file name relative"),
        ('{"text": "<image> <image>", "images": ["images/grey.png"]}', "seen 1 of them and 2 <image>"),
        ('{"text": "<image>"}', "seen 0 of them and 1 <image>"),
    ],
)
def test_a_faulty_line_is_named_with_its_field(folder: Path, line: str, complaint: str) -> None:
    with pytest.raises(UserError) as error:
        read_samples(written(folder, {"text": "fine"}, line))
    assert "samples.jsonl line 2: " in str(error.value)
    assert complaint in str(error.value)


def test_every_fault_is_told_at_once(folder: Path) -> None:
    with pytest.raises(UserError) as error:
        read_samples(written(folder, "{", {"text": "fine"}, {"text": 1, "other": 2}))
    message = str(error.value)
    assert message.startswith("3 faults")
    assert "line 1:" in message
    assert "line 3: text:" in message
    assert "line 3: other:" in message


def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "grey.png"
    Image.new("RGB", (8, 8)).save(outside)
    (folder / "images" / "link.png").symlink_to(outside)
    with pytest.raises(UserError, match="leads out of the JSONL's folder"):
        read_samples(written(folder, {"text": "a", "images": ["images/link.png"]}))


def test_a_missing_and_an_empty_file_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_samples(folder / "absent.jsonl")
    with pytest.raises(UserError, match="no calibration samples"):
        read_samples(written(folder, ""))


def test_the_shipped_set_is_a_mixture_from_its_start() -> None:
    samples = read_samples(SHIPPED_SAMPLES)
    assert len(samples) == 64
    assert len({(sample.question, sample.answer, sample.images) for sample in samples}) == 64
    for part in (samples[:8], samples[:32], samples):
        with_images = sum(bool(sample.images) for sample in part) / len(part)
        assert 0.2 <= with_images <= 0.45
        assert any(not f"{sample.question}{sample.answer}".isascii() for sample in part)
    assert any(len(sample.images) > 1 for sample in samples)
    assert any(sample.system for sample in samples)
    assert any(sample.history for sample in samples)


def test_every_shipped_image_is_used_decodes_and_is_attributed() -> None:
    used = {image for sample in read_samples(SHIPPED_SAMPLES) for image in sample.images}
    images = SHIPPED_SAMPLES.parent / "images"
    assert used == set(images.iterdir())
    readme = (SHIPPED_SAMPLES.parent / "README.md").read_text(encoding="utf-8")
    for file in used:
        with Image.open(file) as image:
            image.load()
            assert image.format == "JPEG"
        assert f"`{file.name}`" in readme
    assert sum(file.stat().st_size for file in used) < 1_000_000

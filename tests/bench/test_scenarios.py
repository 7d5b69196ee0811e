"""What each scenario asks, what it leaves out, and why."""

from __future__ import annotations

from typing import Any

import pytest

from nvlm_trt.bench.record import CaseRecord, RequestRecord, ScenarioName
from nvlm_trt.bench.scenarios import NAMES, Scene, play
from nvlm_trt.bench.scenarios.base import PROBE
from nvlm_trt.bench.workload import Question
from nvlm_trt.errors import ServerError

from .made_scene import BOUNDS, Answering, MadeScene, tiles_of

Played = tuple[tuple[CaseRecord, ...], list[str], list[Question]]


def played(*names: ScenarioName, asker: Answering | None = None, number: int = 0, **bounds: Any) -> Played:
    """Cases, what was left out, and what was asked."""
    whom = asker or Answering()
    scene = MadeScene(whom, BOUNDS.model_copy(update=bounds), number, 2)
    return play(names, scene, lambda _: None), scene.left_out, whom.asked


def of_size(cases: tuple[CaseRecord, ...], scenario: ScenarioName) -> dict[int | None, int]:
    """Requests of each size."""
    sizes: dict[int | None, int] = {}
    for case in cases:
        if case.scenario == scenario:
            sizes[case.size] = sizes.get(case.size, 0) + len(case.requests)
    return sizes


def test_an_image_comes_back_under_another_text_in_front_and_under_the_same_one() -> None:
    cases, left_out, asked = played("repeat")
    assert [case.case for case in cases] == ["first"] * 2 + ["other text in front"] * 2 + ["again"] * 2
    assert left_out == []
    pairs = asked[2:]
    for first, other, again in (pairs[:3], pairs[3:]):
        assert first.images == other.images == again.images
        assert tiles_of(first.images[0]) == 7
        assert again == first
        assert first.text.startswith("<image>")
        assert other.text[:8].isdigit()
        assert other.text[8:].startswith(": <image>")
    assert len({question.images for question in asked if question.images}) == 3  # the warm-up's, and one a pair


def test_a_second_turn_has_the_first_and_its_image_in_its_history() -> None:
    cases, left_out, asked = played("turns")
    assert [case.case for case in cases] == ["first"] * 2 + ["second"] * 2
    assert left_out == []
    for first, second in (asked[2:4], asked[4:6]):
        ((question, answer),) = second.history
        assert question == first.text
        assert "<image>" in question
        assert answer
        assert second.images == first.images
        assert "<image>" not in second.text


def test_whoever_reads_no_history_is_told_from_the_length_of_the_prompt() -> None:
    cases, left_out, _ = played("turns", asker=Answering(reads_history=False))
    assert cases == ()
    assert left_out == ["turns: whoever is asked does not read a history"]


def test_streams_run_long_enough_for_the_long_prompt_that_comes_when_they_have_begun() -> None:
    cases, left_out, asked = played("stall")
    assert left_out == []
    assert len(cases) == 2
    for case in cases:
        *running, long = case.requests
        assert len(running) == 7  # of 8 at a time one is the long prompt's
        assert long.prompt_tokens == 1852
        came = case.started_s[-1]
        assert sum(0.5 + number * 0.1 <= came for number in range(running[0].output_tokens)) >= 16
        assert running[0].total_s > came + long.ttft_s
    assert len(set(asked)) == len(asked)


def test_streams_run_longer_where_the_long_prompt_takes_much_longer_beside_them() -> None:
    class Slow(Answering):
        def ask(self, question: Question) -> RequestRecord:
            record = super().ask(question)
            beside = len([each for each in self.asked if each.images]) > 2  # its length, and alone
            return record.model_copy(update={"ttft_s": 3.0}) if question.images and beside else record

    cases, left_out, _ = played("stall", asker=Slow())
    assert left_out == []
    assert all(case.requests[0].output_tokens >= 32 + 4 * 5 for case in cases)  # 32 + 2 x 5 end too early


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [
        ({"streams": 1}, "stall: one request at a time is all that can be decoded"),
        ({"prompt_tokens": 100}, "stall: a prompt of 112 tokens does not fit; at most 100 do"),
        ({"answer_tokens": 18}, "stall: streams of 18 tokens ended before the long prompt was read"),
    ],
)
def test_a_stall_that_cannot_be_measured_has_a_reason(bounds: dict[str, int], reason: str) -> None:
    cases, left_out, _ = played("stall", **bounds)
    assert (cases, left_out) == ((), [reason])


def test_the_long_prompt_is_what_the_engine_allows() -> None:
    cases, _, _ = played("stall", prompt_tokens=600)
    assert {case.requests[-1].prompt_tokens for case in cases} == {600}


def test_texts_have_the_tokens_that_are_asked_for_and_are_all_new() -> None:
    cases, left_out, asked = played("prefill")
    assert of_size(cases, "prefill") == {512: 2, 2048: 2}
    for case in cases:
        assert {request.prompt_tokens for request in case.requests} == {case.size}
        assert {request.output_tokens for request in case.requests} == {1}
    assert len({question.text for question in asked}) == len(asked)
    assert left_out == []


def test_a_prompt_that_does_not_fit_is_left_out_and_the_shorter_one_measured() -> None:
    cases, left_out, _ = played("prefill", prompt_tokens=1000)
    assert of_size(cases, "prefill") == {512: 2}
    assert left_out == ["prefill: a prompt of 2,048 tokens does not fit; at most 1,000 do"]


def test_streams_go_as_far_as_the_batch() -> None:
    cases, left_out, _ = played("streams", "decode")
    assert of_size(cases, "streams") == {1: 2, 2: 4, 4: 8, 8: 16}
    assert of_size(cases, "decode") == {1: 2, 8: 16}
    assert left_out == ["streams: not 16, 32 streams, as at most 8 are decoded at a time"]
    longest = {request.output_tokens for case in cases for request in case.requests if case.scenario == "decode"}
    assert longest == {128}


def test_a_server_is_asked_for_streams_and_not_for_the_pace_of_tokens() -> None:
    cases, left_out, _ = played("streams", "decode", served=True)
    assert {case.scenario for case in cases} == {"streams"}
    assert left_out[-1].startswith("decode: a server passes text on, not tokens")


def test_images_have_the_tiles_that_are_asked_for() -> None:
    cases, left_out, asked = played("vision")
    assert of_size(cases, "vision") == {1: 2, 5: 2, 7: 2}
    assert {case.case for case in cases} == {"image"}
    assert [tiles_of(*question.images) for question in asked if question.images] == [1] * 3 + [5] * 3 + [7] * 3
    assert left_out == []
    _, left_out, _ = played("vision", max_tiles=4)
    assert left_out == ["vision: no image has 7 tiles; there are images of 1, 3, 4, 5"]


@pytest.mark.parametrize("name", ["vision", "repeat", "turns", "stall", "first"])
def test_whoever_cuts_images_into_other_tiles_is_not_measured_with_them(name: ScenarioName) -> None:
    """A server of which nothing but its address is known is taken for one of the release's tiles."""
    cases, left_out, _ = played(name, tile_size=448, tokens_per_tile=256)
    assert cases == ()
    assert all("where" in reason and "were expected" in reason for reason in left_out)
    assert left_out


def test_whoever_does_not_tell_the_time_of_vision_is_asked_texts_of_as_many_tokens() -> None:
    cases, _, _ = played("vision", asker=Answering(tells_vision=False))
    for image, text in zip(cases[::2], cases[1::2], strict=True):
        assert (image.case, text.case) == ("image", "text")
        assert image.requests[0].prompt_tokens == text.requests[0].prompt_tokens


def test_first_tokens_of_one_and_of_eight_at_once_are_asked_for_with_and_without_images() -> None:
    cases, left_out, asked = played("first")
    assert left_out == []
    kinds = ("text", "new image", "known image")
    assert [(case.case, case.size) for case in cases] == [
        (kind, size) for size in (1, 8) for kind in kinds for _ in "12"
    ]
    assert all(len(case.requests) == case.size for case in cases)
    assert {question.max_tokens for question in asked} == {1}
    shown = [question.images[0] for question in asked if question.images]
    assert {tiles_of(image) for image in shown} == {3}
    known = [image for image in shown if shown.count(image) > 1]
    assert {known.count(image) for image in known} == {1 + 2 * 1, 1 + 2 * 8}, "asked once before it counts"
    assert len({question.text for question in asked if question.images}) > len(set(shown)), "under texts of their own"
    assert played("first", streams=4)[1] == ["first: not 8 streams, as at most 4 are decoded at a time"]


def test_growth_adds_sizes_to_three_scenarios() -> None:
    cases, _, _ = played("growth")
    assert list(of_size(cases, "prefill")) == [256, 512, 1024, 2048, 4096]
    assert list(of_size(cases, "vision")) == [1, 3, 5, 7]
    assert list(of_size(cases, "streams")) == [1, 2, 4, 8]
    assert {case.scenario for case in cases} == {"prefill", "vision", "streams"}


def test_every_subject_is_asked_the_same_and_another_round_something_else() -> None:
    names = [name for name in NAMES if name != "load"]
    first, same, alone = (played(*which)[2] for which in (names, names, ["stall"]))
    assert first == same
    other = played(*names, number=1)[2]
    seen = {question.text for question in first if not question.images} & {each.text for each in other}
    assert seen == {PROBE}  # but for the length of the template, which is looked for again
    assert not {question.images for question in first if question.images} & {each.images for each in other}
    assert alone[-1] in first  # whatever else is measured


def test_what_an_engine_refuses_is_a_reason_and_its_fault_is_a_fault() -> None:
    cases, left_out, _ = played("prefill", "decode", asker=Answering(longest=1000))
    assert of_size(cases, "prefill") == {512: 2}
    assert [case.scenario for case in cases if case.scenario == "decode"]
    assert left_out == ["prefill: the prompt is longer than the engine; seen: 2048"]

    class Broken(Answering):
        def ask(self, question: Question) -> RequestRecord:
            raise ServerError("the decoder failed")

    with pytest.raises(ServerError, match="the decoder failed"):
        played("prefill", asker=Broken())


def test_the_load_alone_asks_no_scenario() -> None:
    assert played("load") == ((), [], [])


def test_those_who_are_asked_together_are_noted_in_order_and_the_last_one_comes_later() -> None:
    scene = Scene(Answering(), BOUNDS, 0, 1)
    questions = [Question("a", max_tokens=1), Question("b", max_tokens=2), Question("c", max_tokens=3)]
    case = scene.together("stall", "long prompt", questions, last_after=0.05)
    assert [request.output_tokens for request in case.requests] == [1, 2, 3]
    assert case.started_s[-1] >= 0.05
    assert case.wall_s > 0

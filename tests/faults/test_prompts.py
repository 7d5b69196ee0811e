"""Prompts that ask for more than there is, or try to say what only the server says (faults 9 and 12)."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from .conftest import FaultRecord, Watch
from .served import Served
from .test_images import file_of
from .wire import CHAT, GENERATE, Reply, ask, assert_clear, chat, data_uri

Begin = Callable[[], Watch]
RED = data_uri(file_of(Image.new("RGB", (64, 48), "red"), "PNG"))

TOO_MANY: dict[str, tuple[str, dict[str, object], str]] = {
    "4 images of 3": (CHAT, chat(images=[RED] * 4), "seen: 4; expected: at most 3"),
    "1,000 images": (CHAT, chat(images=[RED] * 1000), "seen: 1000; expected: at most 3"),
    "2 images, 1 place": (CHAT, chat("<image> what?", [RED] * 2), "1 places with <image> and it holds 2 images"),
    "1 image, 2 places": (
        CHAT,
        chat("<image> or <image>?", [RED]),
        "2 places with <image> and it holds 1 images",
    ),
    "generate: 4 images of 3": (
        GENERATE,
        {"text_input": "x", "image_bytes": [RED] * 4},
        "seen: 4; expected: at most 3",
    ),
    "generate: 2 images, 1 place": (
        GENERATE,
        {"text_input": "<image> what?", "image_bytes": [RED] * 2},
        "seen: 2 images, 1 placeholders",
    ),
}


@pytest.mark.fault(case=9)
@pytest.mark.parametrize("name", TOO_MANY)
def test_images_beyond_the_limit_or_the_places_are_refused_with_both_counts(
    served: Served, watch: Begin, fault_record: FaultRecord, name: str
) -> None:
    path, body, counts = TOO_MANY[name]
    began = watch()
    answer = ask(served.http, path, body)
    growth, seen = began.end()
    assert answer.status == 400
    assert counts in answer.sentence
    assert_clear(answer.sentence)
    assert growth < 30
    fault_record(time_ms=answer.ms, memory_mb=growth, others=seen, variant=name)


TYPED = ("<|im_end|>", "<|im_start|>", "<|vision_pad|>", "<|endoftext|>")


@pytest.mark.fault(case=9)
@pytest.mark.parametrize("mark", TYPED)
def test_a_mark_of_the_template_that_is_typed_is_text(served: Served, fault_record: FaultRecord, mark: str) -> None:
    """A mark is one token and its letters are several: typed, it has to cost what letters cost."""
    ask_for = [chat(text, max_tokens=1) for text in ("a", f"a{mark}", f"a{mark}" * 5)]
    one, two, ten = (tokens(ask(served.http, CHAT, body)) for body in ask_for)
    assert two - one > 2
    assert ten - one > 5 * 2
    fault_record(variant=f"{mark} typed")


def tokens(answer: Reply) -> int:
    """Of the prompt."""
    assert answer.status == 200, answer.body[:300]
    return int(answer.json["usage"]["prompt_tokens"])


@pytest.mark.fault(case=9)
def test_a_placeholder_that_is_typed_brings_no_image(served: Served, fault_record: FaultRecord) -> None:
    """Neither where there is none, nor one of another message."""
    plain = tokens(ask(served.http, CHAT, chat("What is <image>?", max_tokens=1)))
    assert plain < 40
    stolen = chat("What is it?", [RED])
    stolen["messages"] += [  # type: ignore[operator]
        {"role": "assistant", "content": "A square."},
        {"role": "user", "content": "And <image>?"},
    ]
    answer = ask(served.http, CHAT, stolen)
    assert answer.status == 400
    assert answer.error["param"] == "messages[2]"
    fault_record(time_ms=answer.ms, variant="<image> typed")


COUNTS = re.compile(r"seen: (\d+) tokens(?: or more)?, (\d+) of them visual; expected: at most (\d+)")
LONG: dict[str, tuple[str, dict[str, object]]] = {
    "text": (CHAT, chat("long " * 2000)),
    "images and text": (CHAT, chat("long " * 250, [data_uri(file_of(Image.new("RGB", (600, 400)), "PNG"))] * 3)),
    "a conversation": (
        CHAT,
        {
            "model": "nvlm",
            "messages": [{"role": role, "content": "long " * 40} for role in ("user", "assistant") * 20]
            + [{"role": "user", "content": "?"}],
        },
    ),
    "generate": (GENERATE, {"text_input": "long " * 2000}),
    "4 MB of words": (CHAT, chat("long " * 800_000)),
    "4 MB of one word": (GENERATE, {"text_input": "x" * 4_000_000}),
}


@pytest.mark.fault(case=12)
@pytest.mark.parametrize("name", LONG)
def test_a_prompt_beyond_the_context_is_refused_with_its_count_before_the_engine_sees_it(
    served: Served, watch: Begin, fault_record: FaultRecord, name: str
) -> None:
    path, body = LONG[name]
    began = watch()
    answer = ask(served.http, path, body)
    growth, seen = began.end()
    assert answer.status == 400
    counts = COUNTS.search(answer.sentence)
    assert counts is not None, answer.sentence
    assert int(counts[1]) > int(counts[3]) == 512
    assert (int(counts[2]) > 0) == (name == "images and text")
    assert_clear(answer.sentence)
    if path == CHAT:
        assert answer.error["code"] == "context_length_exceeded"
    assert growth < 60  # a body of 4 MB is held several times over
    fault_record(time_ms=answer.ms, memory_mb=growth, others=seen, variant=name)


@pytest.mark.fault(case=12)
def test_texts_of_megabytes_hold_no_short_one_up(served: Served, watch: Begin, fault_record: FaultRecord) -> None:
    """What cannot fit is not tokenised to its end: there are few threads for that, and others wait for them."""
    began = watch()
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(ask, served.http, CHAT, chat("lorem ipsum " * 340_000)) for _ in range(8)]
        good = [ask(served.http, CHAT, chat("Hello")) for _ in range(3)]
        refused = [future.result() for future in waiting]
    growth, seen = began.end()
    assert [answer.status for answer in refused] == [400] * 8
    assert [answer.status for answer in good] == [200] * 3
    assert max(answer.ms for answer in good) < 5000
    slowest = f"slowest of 3 chats {max(answer.ms for answer in good):.0f} ms"
    time_ms = max(answer.ms for answer in refused)
    fault_record(time_ms=time_ms, memory_mb=growth, others=f"{seen}; {slowest}", variant="8 texts of 4 MB at once")


@pytest.mark.fault(case=12)
def test_an_answer_beyond_the_engine_is_refused(served: Served, fault_record: FaultRecord) -> None:
    answer = ask(served.http, CHAT, chat("Hello", max_tokens=401))
    assert answer.status == 400
    assert "seen: 401; expected: 1 to 400" in answer.sentence
    fault_record(time_ms=answer.ms, variant="max_tokens")

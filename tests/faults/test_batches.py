"""Bad requests beside good ones, and equal prompts about different images (faults 21 and 22)."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from nvlm_trt.client import NvlmClient, Options

from .conftest import FaultRecord, Watch
from .inner import Array, Call, decoding, tensor
from .served import Served
from .wire import CHAT, ask, chat, data_uri

Begin = Callable[[], Watch]
SIDE = 112


@pytest.fixture(scope="module")
def vocabulary(engine_dir: Path) -> int:
    """Rows of the decoder's embedding; ids from here on are rows of a prompt table."""
    return int(json.loads((engine_dir / "config.json").read_text())["llm_config"]["vocab_size"])


@pytest.fixture(scope="module")
def hidden(engine_dir: Path) -> int:
    return int(json.loads((engine_dir / "config.json").read_text())["llm_config"]["hidden_size"])


def bad_decodings(vocabulary: int, hidden: int) -> dict[str, dict[str, Array]]:
    """Requests of `tensorrt_llm` that each have one fault."""
    visual = np.array([5, vocabulary, vocabulary + 1, 6])

    def with_table(table: Array) -> dict[str, Array]:
        return decoding(visual, prompt_embedding_table=table)

    rows = np.ones((1, 2, hidden), np.float32)
    return {
        "an id below 0": decoding(np.array([5, -7, 6])),
        "an id far beyond the table": decoding(np.array([5, 2**31 - 1])),
        "visual ids without a table": decoding(visual),
        "a table with too few rows": with_table(rows[:, :1]),
        "a table of another width": with_table(np.ones((1, 2, hidden + 1), np.float32)),
        "a table without rows": with_table(np.ones((1, 0, hidden), np.float32)),
        "a table with NaN": with_table(rows * np.float32(np.nan)),
        "a table with inf": with_table(rows * np.float32(np.inf)),
        "no token to make": decoding(np.array([5, 6]), 0),
        "more tokens than there is room": decoding(np.array([5, 6]), 100_000),
        "a temperature of NaN": decoding(
            np.array([5]),
            runtime_top_p=np.array([[0.9]], np.float32),
            temperature=np.array([[np.nan]], np.float32),
        ),
        "a length beyond the ids": {**decoding(np.array([5, 6])), "input_lengths": np.array([[9]], np.int32)},
    }


@pytest.mark.fault(case=21)
def test_a_bad_request_of_the_decoders_batch_fails_alone(
    served: Served, vocabulary: int, hidden: int, watch: Begin, fault_record: FaultRecord
) -> None:
    prompts = [np.arange(5 + number, 25 + 2 * number) for number in range(5)]

    def good(prompt: Array) -> Call:
        return Call(served.grpc, "tensorrt_llm", decoding(prompt, 48, streaming=np.array([[True]])))

    alone = [good(prompt).ids() for prompt in prompts]
    began = watch()
    mates = [good(prompt) for prompt in prompts]
    for mate in mates:
        mate.first()
    refused = [Call(served.grpc, "tensorrt_llm", inputs) for inputs in bad_decodings(vocabulary, hidden).values()]
    for name, call in zip(bad_decodings(vocabulary, hidden), refused, strict=True):
        with pytest.raises(InferenceServerException) as error:
            call.ids()
        assert "Traceback" not in error.value.message(), name
        assert "internal error" not in error.value.message(), name
    together = [mate.ids() for mate in mates]
    growth, seen = began.end()
    assert together == alone
    assert all(len(answer) == 48 for answer in alone)
    fault_record(memory_mb=growth, others=f"{seen}; 5 batch-mates exact", variant="12 bad decodings among 5 good ones")


@pytest.mark.fault(case=21)
def test_bad_tiles_beside_good_ones_fail_alone(served: Served, watch: Begin, fault_record: FaultRecord) -> None:
    generator = np.random.default_rng(3)
    tiles = [generator.integers(0, 256, (number + 1, SIDE, SIDE, 3), np.uint8) for number in range(4)]
    bad = [np.zeros(shape, np.uint8) for shape in ((0, SIDE, SIDE, 3), (100, SIDE, SIDE, 3), (1, SIDE, SIDE + 1, 3))]
    began = watch()
    with triton.InferenceServerClient(served.grpc) as client, ThreadPoolExecutor(16) as pool:

        def rows(values: Array) -> Array:
            table = client.infer("vision_encoder", [tensor("tiles", values)]).as_numpy("prompt_embedding_table")
            assert table is not None
            return table

        futures = [pool.submit(rows, values) for pair in zip(tiles, [*bad, bad[0]], strict=True) for values in pair]
        together = [future.result(60) for future in futures[::2]]
        said = [future.exception(60) for future in futures[1::2]]
        alone = [rows(values) for values in tiles]  # from the cache: the same rows, whatever was encoded beside them
    growth, seen = began.end()
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one, other)
    # No tiles give no rows, and a hundred are many, but no mistake.
    assert [isinstance(error, InferenceServerException) for error in said] == [False, False, True, False], said
    fault_record(memory_mb=growth, others=f"{seen}; 4 batch-mates exact", variant="tiles of wrong shapes")


@pytest.mark.fault(case=21)
def test_bad_images_among_good_ones_change_no_answer(
    served: Served, jpeg: Callable[[str], bytes], watch: Begin, fault_record: FaultRecord
) -> None:
    good = [
        chat(f"Question {n}", [data_uri(jpeg(name), "jpeg")], max_tokens=16, max_tiles=2)
        for n, name in enumerate(("chelsea", "rocket", "coffee"))
    ]
    bad = chat("Question", [data_uri(jpeg("chelsea")[:9000], "jpeg")])
    alone = [ask(served.http, CHAT, body).json["choices"] for body in good]
    began = watch()
    with ThreadPoolExecutor(9) as pool:
        answers = list(pool.map(lambda body: ask(served.http, CHAT, body), [*good, bad, *good, bad, bad]))
    growth, seen = began.end()
    assert [answer.status for answer in answers] == [200] * 3 + [400] + [200] * 3 + [400] * 2
    assert [answers[place].json["choices"] for place in (0, 1, 2, 4, 5, 6)] == alone * 2
    slowest = max(answer.ms for answer in answers if answer.status == 400)
    fault_record(time_ms=slowest, memory_mb=growth, others=f"{seen}; 6 others exact", variant="damaged images")


@pytest.mark.fault(case=22)
def test_one_prompt_about_two_images_has_two_answers_under_load(
    served: Served, jpeg: Callable[[str], bytes], watch: Begin, fault_record: FaultRecord
) -> None:
    """With the caches of tiles and of prompts on; what differs is the image, or its tile limit."""
    options = Options(max_tokens=16, max_tiles=2)
    asked = [
        (jpeg("chelsea"), options),
        (jpeg("rocket"), options),
        (jpeg("chelsea"), Options(max_tokens=16, max_tiles=1)),
    ]
    with NvlmClient(served.grpc, idle_timeout=60) as client:

        def answer(pair: tuple[bytes, Options]) -> str:
            return client.generate("What is it?", images=[pair[0]], options=pair[1]).text

        alone = [answer(pair) for pair in asked]
        assert len(set(alone)) == 3
        began = watch()
        with ThreadPoolExecutor(12) as pool:
            assert list(pool.map(answer, asked * 8)) == alone * 8
    growth, seen = began.end()
    fault_record(memory_mb=growth, others=seen, variant="24 at once, 12 at a time")

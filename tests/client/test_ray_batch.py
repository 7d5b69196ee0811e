"""A batch over a Ray Data dataset, on a local Ray."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator

import grpc
import pyarrow as pa
import pytest

from nvlm_trt.errors import UserError
from nvlm_trt.serving.faults import UnavailableError

from .stand_in import Asked, Refused, StandIn

ray = pytest.importorskip("ray", reason="needs Ray: pip install -e '.[ray]'")
importlib.import_module("ray.data")

from nvlm_trt.client.ray_batch import AskTables, answer_dataset  # noqa: E402
from nvlm_trt.client.retry import Backoff  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # Ray's own, in its threads


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


def script(asked: Asked) -> str:
    if asked["text_input"] == ["q3"]:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "q3 is too long")
    return f"{len(asked.get('image_bytes', []))} images: {asked['text_input'][0]}"


def test_every_row_has_an_answer_or_an_error_of_its_own(tmp_path):
    (tmp_path / "a.png").write_bytes(b"file a")
    rows = [{"id": f"r{i}", "prompt": f"q{i}", "images": None, "max_tokens": 4} for i in range(40)]
    rows[1]["images"] = ["a.png"]
    rows[2]["images"] = ["b.png"]
    with StandIn(script) as server:
        answers = answer_dataset(ray.data.from_items(rows), server.url, actors=2, folder=tmp_path).take_all()
        asked = {one["text_input"][0]: one for one in server.asked}
    found = {row["id"]: row for row in answers}
    assert len(answers) == len(found) == 40
    assert found["r1"]["text"] == "1 images: q1"
    assert found["r1"]["error"] is None
    assert asked["q1"]["image_bytes"] == [b"file a"]
    assert asked["q1"]["max_tokens"] == [4]
    assert found["r2"]["error"]["kind"] == "FieldError"
    assert found["r3"]["error"] == {"message": "q3 is too long", "kind": "RequestError", "attempts": 1}
    assert {key for key, row in found.items() if row["error"]} == {"r2", "r3"}
    assert found["r4"]["num_output_tokens"] == 2


def test_images_can_be_bytes_and_a_conversation_a_column():
    rows = [{"id": 1, "messages": [{"role": "user", "content": "And?"}], "images": [b"file"]}]
    with StandIn(script) as server:
        (answer,) = answer_dataset(ray.data.from_items(rows), server.url).take_all()
        assert server.asked[0]["image_bytes"] == [b"file"]
    assert (answer["id"], answer["text"]) == ("1", "1 images: And?")


def test_the_server_never_has_more_requests_than_actors_times_concurrency():
    first = threading.Barrier(6)

    def script(asked: Asked) -> str:
        if len(server.asked) <= 6:
            first.wait(timeout=60)
        return "done"

    rows = [{"id": i, "prompt": "q"} for i in range(192)]
    with StandIn(script) as server:
        dataset = ray.data.from_items(rows, override_num_blocks=8)
        answers = answer_dataset(dataset, server.url, actors=2, concurrency=3).take_all()
        assert server.most_at_a_time == 6
    assert sorted(row["id"] for row in answers) == sorted(str(i) for i in range(192))
    assert {row["text"] for row in answers} == {"done"}


def test_a_row_without_id_and_a_server_that_is_gone_end_the_run(tmp_path):
    with StandIn() as server:
        gone = server.url
    ask = AskTables(gone, 2, Backoff(attempts=2, first=0.0), 5.0, tmp_path)
    with pytest.raises(UserError, match="no id"):
        ask(pa.Table.from_pylist([{"prompt": "q"}]))
    with pytest.raises(UnavailableError, match="cannot be reached"):
        ask(pa.Table.from_pylist([{"id": "a", "prompt": "q"}]))

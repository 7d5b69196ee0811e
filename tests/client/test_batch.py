"""A batch from file to file: the check before, the order, what a stop leaves, and what the next run makes of it."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import ExitStack

import grpc
import pytest

from nvlm_trt.client import AsyncNvlmClient
from nvlm_trt.client.batch import Batch, plan_batch
from nvlm_trt.client.batch_ask import Asker
from nvlm_trt.client.batch_output import origin_of
from nvlm_trt.client.retry import Backoff
from nvlm_trt.errors import BusyError, UserError
from nvlm_trt.serving.faults import UnavailableError

from .stand_in import Asked, Refused, StandIn


@pytest.fixture
def source(tmp_path):
    """Twelve prompts, q0 to q11, under the ids r0 to r11."""
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"id": f"r{i}", "prompt": f"q{i}"}) + "\n" for i in range(12)))
    return path


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.jsonl"


def run(source, output, url, *, retry_failed=False, concurrency=8, attempts=3, progress=None):
    async def asked(batch):
        async with AsyncNvlmClient(url) as client:
            asker = Asker(client, Backoff(attempts, first=0.0))
            return await batch.run(asker, concurrency=concurrency, progress=progress)

    with Batch(source, output, retry_failed=retry_failed) as batch:
        return asyncio.run(asked(batch))


def records(output):
    return [json.loads(line) for line in output.read_text().splitlines()]


def ids(output):
    return sorted(record["id"] for record in records(output))


ALL = sorted(f"r{i}" for i in range(12))


def refusing(*prompts: str):
    def script(asked: Asked) -> str:
        if asked["text_input"][0] in prompts:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "no")
        return "yes"

    return script


def test_every_request_has_one_record(source, output):
    told = []
    with StandIn(refusing("q3")) as server:
        tally = run(source, output, server.url, progress=lambda tally: told.append(tally.done))
    assert ids(output) == ALL
    assert (tally.answered, tally.failed, tally.num_input_tokens, tally.num_output_tokens) == (11, 1, 33, 22)
    (failed,) = [record for record in records(output) if "error" in record]
    assert failed["id"] == "r3"
    assert failed["error"] == {"message": "no", "kind": "RequestError", "attempts": 1}
    assert told == list(range(1, 13))


def test_records_come_in_the_order_of_the_answers(source, output):
    last_was_asked = threading.Event()

    def script(asked: Asked) -> str:
        if asked["text_input"] == ["q0"]:
            assert last_was_asked.wait(60)
        elif asked["text_input"] == ["q11"]:
            last_was_asked.set()
        return "yes"

    with StandIn(script) as server:
        run(source, output, server.url, concurrency=3)
    assert "r0" in [record["id"] for record in records(output)[-2:]]


def test_all_places_are_used_and_no_more(source, output):
    first = threading.Barrier(3)

    def script(asked: Asked) -> str:
        if len(server.asked) <= 3:
            first.wait(60)
        return "yes"

    with StandIn(script) as server:
        run(source, output, server.url, concurrency=3)
        assert server.most_at_a_time == 3


def test_images_go_along_as_files_bytes(tmp_path, output):
    (tmp_path / "a.png").write_bytes(b"file a")
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"prompt": "q", "images": ["a.png"], "max_tokens": 4, "stop_words": ["."]}))
    with StandIn() as server:
        run(source, output, server.url)
        (asked,) = server.asked
    assert asked["image_bytes"] == [b"file a"]
    assert (asked["max_tokens"], asked["stop_words"]) == ([4], ["."])
    assert records(output)[0]["id"] == 1


def test_an_image_that_goes_after_the_check_is_an_error_of_its_request_alone(tmp_path, output):
    source = tmp_path / "in.jsonl"
    images = [tmp_path / f"{number}.png" for number in range(3)]
    for image in images:
        image.write_bytes(b"file")
    source.write_text("".join(json.dumps({"prompt": "q", "images": [image.name]}) + "\n" for image in images))

    def script(asked: Asked) -> str:
        images[1].unlink(missing_ok=True)
        return "yes"

    with StandIn(script) as server:
        run(source, output, server.url, concurrency=1)
        assert len(server.asked) == 2
    assert [record.get("text") for record in records(output)] == ["yes", None, "yes"]
    assert "1.png" in records(output)[1]["error"]["message"]


def test_nothing_is_sent_or_written_while_one_line_is_wrong(source, output):
    lines = ["", '{"prompt": "a", "x": 1}', "no JSON", "[]", '{"id": "r0", "prompt": "a"}', '"\xff"']
    with source.open("ab") as file:
        file.write("\n".join(lines).encode("latin-1"))
    with pytest.raises(UserError) as refused:
        Batch(source, output)
    assert "5 lines of the input are wrong" in str(refused.value)
    for words in (
        "in.jsonl:14: x: seen an unknown key",
        "in.jsonl:15: seen no JSON",
        "in.jsonl:16: seen list, expected an object",
        "in.jsonl:17: id: seen 'r0' in line 1 too",
        "in.jsonl:18: seen no UTF-8 text",
    ):
        assert words in str(refused.value)
    assert [path.name for path in source.parent.iterdir()] == ["in.jsonl"]


def test_a_number_and_its_text_are_one_id(tmp_path, output):
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "a"}\n{"prompt": "b", "id": "1"}')
    with pytest.raises(UserError, match="id: seen '1' in line 1 too"):
        plan_batch(source, output)


def test_of_many_faults_the_first_are_shown(tmp_path, output):
    source = tmp_path / "in.jsonl"
    source.write_text("{}\n" * 100)
    with pytest.raises(UserError, match=r"100 lines(.|\n)*in.jsonl:40: (.|\n)*\.\.\. and 60 more"):
        plan_batch(source, output)


@pytest.mark.parametrize("make", [lambda path: path.write_text("\n\n"), lambda path: path.mkdir(), lambda path: None])
def test_an_input_without_requests_is_refused(tmp_path, output, make):
    make(tmp_path / "in.jsonl")
    with pytest.raises(UserError, match="the input"):
        plan_batch(tmp_path / "in.jsonl", output)


def test_a_run_goes_on_where_one_was_torn(source, output):
    with StandIn() as server:
        run(source, output, server.url)
        lines = output.read_bytes().splitlines(keepends=True)
        output.write_bytes(b"".join(lines[:5]) + lines[5][:-10])
        before = len(server.asked)
        tally = run(source, output, server.url)
        assert len(server.asked) - before == 7
    assert output.read_bytes().startswith(b"".join(lines[:5]))
    assert ids(output) == ALL
    assert tally.answered == 12


def test_a_finished_run_asks_nothing(source, output):
    with StandIn() as server:
        run(source, output, server.url)
        written = output.read_bytes()
        run(source, output, server.url)
        assert len(server.asked) == 12
    assert output.read_bytes() == written


def test_errors_are_asked_again_only_on_request_and_stay_one_record_each(source, output):
    with StandIn(refusing("q3", "q4")) as server:
        run(source, output, server.url)
        assert run(source, output, server.url).failed == 2
        assert len(server.asked) == 12
        server.script = refusing("q4")
        tally = run(source, output, server.url, retry_failed=True)
        assert sorted(server.prompts()[12:]) == ["q3", "q4"]
    assert (tally.answered, tally.failed) == (11, 1)
    assert ids(output) == ALL


def test_a_changed_input_and_a_file_of_somebody_else_are_refused(source, output):
    with StandIn() as server:
        run(source, output, server.url)
    with source.open("a") as file:
        file.write('{"prompt": "one more"}\n')
    written = output.read_bytes()
    with pytest.raises(UserError, match="belongs to another input"):
        Batch(source, output)
    origin_of(output).unlink()
    with pytest.raises(UserError, match="no output of this batch"):
        Batch(source, output)
    assert output.read_bytes() == written
    with pytest.raises(UserError, match="no output of this batch"):
        Batch(source, source)


@pytest.mark.parametrize("line", ["{}", '{"id": "r0"}', "[]", '{"id": "x", "error": {}}', '{"id": "r0", "error": {}}'])
def test_a_line_that_is_no_record_is_refused_and_nothing_is_cut(source, output, line):
    with StandIn(refusing("q0")) as server:
        run(source, output, server.url, concurrency=1)
    with output.open("a") as file:
        file.write(f"{line}\ntorn")
    written = output.read_bytes()
    with pytest.raises(UserError, match=r"out.jsonl:13"):
        Batch(source, output)
    assert output.read_bytes() == written


def test_what_is_appended_while_a_batch_runs_is_not_asked(source, output):
    source.write_text(source.read_text().rstrip("\n"))

    def script(asked: Asked) -> str:
        if asked["text_input"] == ["q0"]:
            with source.open("a") as file:
                file.write('\n{"id": "r0", "prompt": "q0"}\n{"prompt": "one more"}\n')
        return "yes"

    with StandIn(script) as server:
        run(source, output, server.url, concurrency=1)
    assert ids(output) == ALL


@pytest.mark.parametrize(
    ("change", "seen", "kept"),
    [
        (lambda text: text.replace("q7", "Q7"), "in.jsonl:8: another line than was checked", 7),
        (lambda text: text.replace("r7", "r").replace("r8", "r7").replace('"r"', '"r8"'), "in.jsonl:8", 7),
        (lambda text: text.replace('"prompt": "q7"', '"prompt": "q7'), "in.jsonl:8: seen no JSON", 7),
        (lambda text: "\n" + text, "in.jsonl:2: another line than was checked", 0),
        (lambda text: text[: text.index('{"id": "r7"')], "no more than", 7),
    ],
    ids=["another prompt", "ids that swapped places", "a torn line", "a line more before it", "an end that is gone"],
)
def test_an_input_that_changes_after_its_check_ends_the_run_before_anything_else_is_asked(
    source, output, change, seen, kept
):
    with StandIn() as server, Batch(source, output) as batch:
        source.write_text(change(source.read_text()))

        async def asked():
            async with AsyncNvlmClient(server.url) as client:
                await batch.run(Asker(client, Backoff(1)), concurrency=1)

        with pytest.raises(UserError, match="the input was changed while it was read") as refused:
            asyncio.run(asked())
    assert seen in str(refused.value)
    assert [record["id"] for record in records(output)] == [f"r{number}" for number in range(kept)]


def test_two_runs_do_not_write_one_output(source, output):
    with Batch(source, output), pytest.raises(BusyError, match="another batch writes here"):
        Batch(source, output)


def test_a_server_that_goes_away_ends_the_run_and_the_next_run_does_the_rest(source, output):
    def script(asked: Asked) -> str:
        if len(server.asked) > 4:
            raise Refused(grpc.StatusCode.UNAVAILABLE)
        return "yes"

    with StandIn(script) as server, pytest.raises(UnavailableError):
        run(source, output, server.url, concurrency=1)
    assert len(records(output)) == 4
    with StandIn() as server:
        assert run(source, output, server.url).answered == 12
        assert len(server.asked) == 8
    assert ids(output) == ALL


def test_a_server_that_is_started_again_is_found_again(source, output):
    with StandIn() as first:
        port = first.port
    slept = []

    async def sleep(seconds):
        if not slept:
            later.enter_context(StandIn(port=port))
        slept.append(seconds)
        await asyncio.sleep(0.05)

    async def asked(batch):
        async with AsyncNvlmClient(f"127.0.0.1:{port}") as client:
            return await batch.run(Asker(client, Backoff(1000), sleep=sleep))

    with ExitStack() as later, Batch(source, output) as batch:
        assert asyncio.run(asked(batch)).answered == 12
    assert slept


def test_a_plan_counts_and_writes_nothing(source, output):
    plan = plan_batch(source, output)
    assert (plan.facts.records, plan.facts.images, plan.to_ask) == (12, 0, 12)
    assert not output.exists()
    with StandIn(refusing("q3")) as server:
        run(source, output, server.url)
    output.write_bytes(output.read_bytes()[:-5])
    written = output.read_bytes()
    plan = plan_batch(source, output, retry_failed=True)
    assert plan.to_ask in (1, 2)
    assert output.read_bytes() == written

"""The gpu target's repository on a real tritonserver: every model but the two engines is the one that GPUs run."""

from __future__ import annotations

import base64
import re
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton

from nvlm_trt.client import Options
from nvlm_trt.decoder.request import SamplingParams

from ...http_json import post_json
from ...monitoring import adapted

GREEDY = Options(max_tokens=24)
LONG = Options(max_tokens=1500, min_tokens=1500)
QUESTION = "What is there?"


def expected(local, *images):
    return local.generate(QUESTION, SamplingParams(max_tokens=24, stop_ids=()), images=list(images))


def executions(engine):
    """What the vision encoder's instances did: process and tiles of each execution."""
    log = engine / "vision.log"
    return [(line.split()[0], list(map(int, line.split()[1:]))) for line in log.read_text().splitlines()]


def noted(engine, name):
    """What the decoder did: tokens by the id of the request."""
    log = engine / name
    lines = [line.rsplit(" ", 1) for line in log.read_text().splitlines()] if log.exists() else []
    return {name: int(tokens) for name, tokens in lines}


def test_a_text_only_answer_is_that_of_the_engines(client, local):
    whole = expected(local)
    answer = client.generate(QUESTION, options=GREEDY)
    assert (answer.text, answer.num_output_tokens) == (whole.text, len(whole.output_ids))


@pytest.mark.parametrize("names", [("chelsea",), ("rocket", "astronaut")])
def test_answers_about_photographs_are_those_of_the_engines_with_bfloat16_rows(client, local, jpeg, names):
    images = [jpeg(name) for name in names]
    answer = client.generate(QUESTION, images=images, options=GREEDY)
    assert answer.text == expected(local, *images).text
    assert answer.text != client.generate(QUESTION, options=GREEDY).text


def test_streamed_pieces_join_to_the_whole(client, jpeg):
    image = jpeg("coffee")
    stream = client.stream(QUESTION, images=[image], options=GREEDY)
    pieces = list(stream)
    assert len(pieces) > 1  # of tokens that have come meanwhile several go together
    assert "".join(pieces) == client.generate(QUESTION, images=[image], options=GREEDY).text


@pytest.mark.parametrize("count", [0, 1])
def test_the_ensemble_gives_the_same(server, client, jpeg, count):
    images = [jpeg("chelsea")][:count]
    body = {"text_input": QUESTION, "max_tokens": 24}
    if images:
        body["image_bytes"] = [base64.b64encode(image).decode() for image in images]
    answer = post_json(server.http_url, "models/ensemble/generate", body)
    assert answer.json["text_output"] == client.generate(QUESTION, images=images, options=GREEDY).text


@pytest.mark.parametrize(("count", "parts"), [(1, [1]), (2, [1, 1]), (7, [3, 4]), (14, [2, 4, 4, 4])])
def test_tiles_of_a_request_spread_over_the_gpus_and_come_back_in_order_bit_for_bit(
    server, gpu_engine, local, count, parts
):
    tiles = np.random.default_rng(count).integers(0, 256, (count, 112, 112, 3), np.uint8)
    before = len(executions(gpu_engine)) if (gpu_engine / "vision.log").exists() else 0
    with triton.InferenceServerClient(server.grpc_url) as client:
        tensor = triton.InferInput("tiles", list(tiles.shape), "UINT8")
        tensor.set_data_from_numpy(tiles)
        answer = client.infer("tile_parallel_vision", [tensor])
    table = answer.as_numpy("prompt_embedding_table")
    rows = local.vision.encode(tiles)
    assert answer.get_output("prompt_embedding_table").datatype == "BF16"
    assert np.array_equal(table, rows.reshape(1, -1, rows.shape[-1]))
    done = executions(gpu_engine)[before:]
    assert sorted(size for _, sizes in done for size in sizes) == parts
    assert all(len(sizes) == 1 for _, sizes in done)
    assert len({process for process, _ in done}) == min(2, len(parts))


def test_closing_a_stream_about_an_image_stops_the_decoder(gpu_engine, client, jpeg):
    answered = len(noted(gpu_engine, "answers.log"))
    stream = client.stream(QUESTION, images=[jpeg("chelsea")], options=LONG)
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 20
    while len(noted(gpu_engine, "answers.log")) == answered and time.monotonic() < deadline:
        time.sleep(0.05)
    (stopped,) = noted(gpu_engine, "stops.log")
    assert 0 < noted(gpu_engine, "answers.log")[stopped] < LONG.max_tokens


def test_closing_a_stream_while_its_image_is_encoded_ends_the_decoding_as_it_begins(gpu_engine, client, jpeg):
    answered, encoded = len(noted(gpu_engine, "answers.log")), len(executions(gpu_engine))
    (gpu_engine / "slow").touch()
    stream = client.stream(QUESTION, images=[jpeg("chelsea")], options=LONG)
    deadline = time.monotonic() + 20
    while len(executions(gpu_engine)) == encoded and time.monotonic() < deadline:
        time.sleep(0.02)
    stream.close()
    (gpu_engine / "slow").unlink()
    deadline = time.monotonic() + 5  # it may not have begun at all; one that went on would be over by then
    while len(noted(gpu_engine, "answers.log")) == answered and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(tokens < LONG.max_tokens / 2 for tokens in [*noted(gpu_engine, "answers.log").values()][answered:])


def test_an_answer_that_ends_by_itself_is_not_stopped(gpu_engine, client, jpeg):
    stopped, answered = noted(gpu_engine, "stops.log"), noted(gpu_engine, "answers.log")
    client.generate(QUESTION, images=[jpeg("chelsea")], options=GREEDY)
    time.sleep(0.3)
    assert noted(gpu_engine, "stops.log") == stopped
    assert len(noted(gpu_engine, "answers.log")) == len(answered) + 1


def metric(server, name, model):
    """A counter of tritonserver's own page; none where it has no such line."""
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=10) as answer:
        found = re.search(rf'^{name}{{model="{model}",version="1"}} (\d+)', answer.read().decode(), re.MULTILINE)
    return None if found is None else int(found[1])


def test_the_metrics_that_the_autoscaler_divides_are_there(server, client, jpeg):
    client.generate(QUESTION, images=[jpeg("chelsea")], options=GREEDY)
    names = re.findall(r"nv_inference_\w+", adapted()["nvlm_triton_queue_seconds"])
    assert len(names) == 2
    assert all(metric(server, name, "nvlm") is not None for name in names)
    assert metric(server, "nv_inference_request_success", "nvlm") > 0


def test_images_wait_for_a_vision_encoder_in_a_queue_that_the_autoscaler_sees(server, gpu_engine, client, jpeg):
    def waited():
        return metric(server, "nv_inference_queue_duration_us", "vision_encoder")

    before = waited()
    (gpu_engine / "slow").touch()
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(client.generate, QUESTION, images=[jpeg("chelsea")], options=GREEDY) for _ in range(6)]
        assert all(one.result().text for one in asked)
    (gpu_engine / "slow").unlink()
    assert waited() - before > 1e6


def test_every_rank_is_a_server_and_only_the_first_one_listens(server):
    ranks = [
        process
        for process in psutil.Process(server.process.pid).children(recursive=True)
        if process.name() == "tritonserver"
    ]
    assert len(ranks) == 2
    listening = [
        any(connection.status == psutil.CONN_LISTEN for connection in rank.net_connections("tcp")) for rank in ranks
    ]
    assert sorted(listening) == [False, True]
    commands = [" ".join(rank.cmdline()) for rank in ranks]
    assert sum("--load-model=tensorrt_llm" in command for command in commands) == 1


def test_the_vision_encoder_is_loaded_before_the_decoder_and_everything_once(server, gpu_engine):
    log = server.process.log.read_text(errors="replace")
    rank_0 = re.search(r"(\d+) \S+ \"loading: vision_encoder", log)
    assert rank_0
    loads = re.findall(rf" {rank_0[1]} \S+ \"(loading: |successfully loaded ')(\w+)", log)
    begun = [model for what, model in loads if what == "loading: "]
    assert sorted(begun) == sorted(folder.name for folder in (gpu_engine / "triton_repo").iterdir())
    assert loads.index(("successfully loaded '", "vision_encoder")) < loads.index(("loading: ", "tensorrt_llm"))

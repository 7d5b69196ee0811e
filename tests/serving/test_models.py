"""The Python models themselves, with a stand-in for the backend."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import json
import math
import threading
import time
import types
from typing import ClassVar

import numpy as np
import pytest
import torch

from nvlm_trt.errors import EngineError, ImageRejected
from nvlm_trt.serving.config import configs
from nvlm_trt.serving.config_parts import ModelConfig
from nvlm_trt.serving.heartbeat import read_beats
from nvlm_trt.serving.orchestrator import Decoded
from nvlm_trt.serving.spec import PARAMETER_ENGINE, PARAMETER_SPEC
from nvlm_trt.turns import Turns


@pytest.fixture
def load(backend, spec, engine_dir, monkeypatch):
    """Loads a model as tritonserver does."""
    loaded = []

    def make(name, spec=spec, **patches):
        module = importlib.import_module(f"nvlm_trt.serving.models.{name}")
        for attribute, value in patches.items():
            monkeypatch.setattr(module, attribute, value)
        made = configs(spec).get(name, ModelConfig())
        config = {
            "name": name,
            "input": [{"name": tensor.name} for tensor in made.input],
            "output": [{"name": tensor.name} for tensor in made.output],
            "parameters": {
                PARAMETER_SPEC: {"string_value": spec.to_json()},
                PARAMETER_ENGINE: {"string_value": "../.."},
            },
        }
        model = module.TritonPythonModel()
        place = engine_dir / "triton_repo" / name
        model.initialize({"model_config": json.dumps(config), "model_repository": str(place)})
        loaded.append(model)
        return model

    yield make
    for model in loaded:
        model.finalize()


def wait(condition):
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


def test_selftest_echoes(load, request_of):
    tensors = {"uint8_in": np.array([5, 6], np.uint8), "fp32_in": np.array([0.5], np.float32)}
    (response,) = load("selftest").execute([request_of(tensors)])
    assert response.values()["uint8_out"].tolist() == [5, 6]
    assert response.values()["fp32_out"].tolist() == [0.5]


def test_preprocessing_answers_each_request_by_itself(load, request_of, text):
    good = request_of({"text_input": text("Hello")}, ("input_ids", "num_tiles"))
    bad = request_of({"max_tokens": np.array([5])}, ("input_ids",))
    unknown = request_of({"text_input": text("x")}, ("input_ids",), '{"max_token": 5}')
    responses = load("preprocessing").execute([good, bad, unknown])
    assert responses[0].values()["num_tiles"].tolist() == [0]
    assert responses[1].error().message().startswith("text_input is missing")
    assert "did you mean max_tokens" in responses[2].error().message()
    assert responses[2].error().code() == 0


def test_a_fault_of_ours_is_logged_and_not_told(load, request_of, caplog):
    (response,) = load("postprocessing").execute([request_of({"nonsense": np.zeros(1)})])
    assert response.error().message() == "internal error: the server failed on this request; its log says why"
    assert "a request failed" in caplog.text


def test_postprocessing_gives_text(load, request_of, tokenizer):
    ids = tokenizer.encode_text("Hello")
    tensors = {"output_ids": np.array([[ids]], np.int32), "sequence_length": np.array([[len(ids)]], np.int32)}
    (response,) = load("postprocessing").execute([request_of(tensors)])
    assert response.values()["text_output"].tolist() == [[b"Hello"]]
    assert response.values()["num_output_tokens"].tolist() == [[len(ids)]]


class Runner:
    """A vision engine."""

    tokens_per_tile, hidden_size = 16, 8

    def __init__(self, directory, *, threads, turns):
        assert directory.parts[-2:] == ("vision", "cpu")

    def check(self, tiles):
        assert tiles.shape[1:] == (2, 2, 3)

    def encode(self, tiles, given_up):
        if (tiles == 13).any():
            raise RuntimeError("bad")
        return np.full((len(tiles), 16, 8), tiles[0, 0, 0, 0], np.float32)


def of_value(request_of, *values):
    return request_of({"tiles": np.stack([np.full((2, 2, 3), value, np.uint8) for value in values])})


def test_vision_encoder_answers_each_request_by_itself_with_one_table(load, request_of):
    requests = [of_value(request_of, *values) for values in ((1,), (2, 13), (3, 4, 3))]
    assert load("vision_encoder", VisionRunner=Runner).execute(requests) == [None] * 3  # the answers come by themselves
    wait(lambda: all(request.sender.final for request in requests))
    first, second, third = (request.sender.sent[0][0] for request in requests)
    assert first.values()["prompt_embedding_table"].shape == (1, 16, 8)
    assert second.error().message().startswith("internal error: ")
    assert third.values()["prompt_embedding_table"][0, ::16, 0].tolist() == [3, 4, 3]
    assert all(len(request.sender.sent) == 1 for request in requests)


def test_vision_encoder_tells_codes_of_errors_to_who_asks_for_them(load, request_of):
    request = request_of({"tiles": np.full((1, 2, 2, 3), 13, np.uint8)}, text_parameters='{"error_codes": true}')
    load("vision_encoder", VisionRunner=Runner).execute([request])
    wait(lambda: request.sender.final)
    assert request.sender.sent[0][0].error().message().startswith("[INTERNAL] internal error: ")


def test_vision_encoder_shows_its_cache_on_the_metrics_port(load, backend, request_of):
    model = load("vision_encoder", VisionRunner=Runner)
    metrics = backend.MetricFamily.shown
    for hits in (1, 4):
        request = of_value(request_of, 5, 6, 5)
        model.execute([request])
        wait(lambda hits=hits: metrics["nvlm_vision_cache_hits_total"].value == hits)
    wait(lambda: metrics["nvlm_vision_cache_bytes"].value == 2 * 16 * 8 * 4)
    assert metrics["nvlm_vision_cache_misses_total"].value == 2
    assert metrics["nvlm_vision_cache_tiles"].value == 2
    assert metrics["nvlm_vision_cache_evictions_total"].value == 0
    assert metrics["nvlm_vision_cache_max_bytes"].value == 512 << 20


def test_vision_encoder_of_a_recipe_without_a_cache_keeps_nothing(load, backend, spec, request_of):
    cpu = dataclasses.replace(spec.cpu, vision_cache_mib=0)
    model = load("vision_encoder", spec=dataclasses.replace(spec, cpu=cpu), VisionRunner=Runner)
    for count in (1, 2):
        model.execute([of_value(request_of, 5)])
        wait(lambda count=count: backend.MetricFamily.shown["nvlm_vision_cache_misses_total"].value == count)
    assert backend.MetricFamily.shown["nvlm_vision_cache_bytes"].value == 0


def test_vision_encoder_is_an_engine_on_the_gpu_target(load, gpu_spec):
    with pytest.raises(EngineError, match="gpu target"):
        load("vision_encoder", spec=gpu_spec, VisionRunner=Runner)


class Engine:
    """A decoder engine that answers two tokens."""

    heartbeat = 0.0

    @classmethod
    def load(cls, directory, *, threads, cache, turns):
        assert (cache.mib, cache.precision, cache.reuse) == (None, "auto", True)
        cls.heartbeat = time.monotonic()
        return cls()

    def check(self, request):
        return request

    def submit(self, request, sink):
        from nvlm_trt.decoder.request import TokenEvent
        from nvlm_trt.decoder.request_handle import RequestHandle
        from nvlm_trt.decoder.stages import Stages

        sink(TokenEvent(request.request_id, 4))
        sink(TokenEvent(request.request_id, 5, "length"))
        return RequestHandle(request.request_id, lambda: None, Stages(2, 1, queued=1.0, began=1.5, first=3.5))

    def status(self):
        from nvlm_trt.decoder.status import EngineStatus

        return EngineStatus(0, 0, 8, 8, 3, 1, 100, 64)

    def close(self):
        """Nothing to end."""


def test_tensorrt_llm_answers_through_the_sender(load, request_of):
    request = request_of(
        {
            "input_ids": np.array([[1, 2]], np.int32),
            "input_lengths": np.array([2], np.int32),
            "request_output_len": np.array([2], np.int32),
        }
    )
    bad = request_of({})
    model = load("tensorrt_llm", DecoderEngine=Engine)
    model.execute([request, bad])
    wait(lambda: request.sender.final and bad.sender.final)
    (response, _), *_ = request.sender.sent
    assert response.values()["output_ids"].tolist() == [[[4, 5]]]
    assert response.values()["sequence_length"].tolist() == [[2]]
    assert "num_cached_tokens" not in response.values()
    assert bad.sender.sent[0][0].error().message() == "input_ids is missing"


def test_tensorrt_llm_tells_the_cached_tokens_of_a_prompt_where_they_are_asked_for(load, request_of):
    inputs = {
        "input_ids": np.array([[1, 2]], np.int32),
        "input_lengths": np.array([2], np.int32),
        "request_output_len": np.array([2], np.int32),
    }
    request = request_of(inputs, ("output_ids", "sequence_length", "num_cached_tokens"))
    load("tensorrt_llm", DecoderEngine=Engine).execute([request])
    wait(lambda: request.sender.final)
    assert request.sender.sent[0][0].values()["num_cached_tokens"].tolist() == [[1]]


@pytest.mark.parametrize(
    ("name", "patches"),
    [
        ("preprocessing", {}),
        ("vision_encoder", {"VisionRunner": Runner}),
        ("tensorrt_llm", {"DecoderEngine": Engine}),
    ],
)
def test_a_model_that_is_unloaded_ends_its_heartbeat_and_sends_its_last_spans(
    load, tmp_path, monkeypatch, name, patches
):
    monkeypatch.setenv("NVLM_TRT_HEARTBEAT_DIR", str(tmp_path))
    model = load(name, **patches)
    wait(lambda: [beat.model for beat in read_beats(tmp_path)] == [name])
    closed = threading.Event()
    model.tracer = types.SimpleNamespace(close=closed.set)
    model.finalize()
    assert read_beats(tmp_path) == []
    assert closed.is_set()


def test_tensorrt_llm_shows_its_cache(load, backend):
    load("tensorrt_llm", DecoderEngine=Engine)
    shown = {name: metric.value for name, metric in backend.MetricFamily.shown.items()}
    assert shown["nvlm_kv_prompt_tokens_total"] == 100
    assert shown["nvlm_kv_reused_tokens_total"] == 64
    assert shown["nvlm_kv_cached_blocks"] == 3


class Decoder:
    """The orchestrator's decoder: gives these tokens, then waits or ends."""

    tokens: tuple[int, ...] = ()
    endless = False
    stopped = False
    asked: ClassVar[list] = []

    def __init__(self, tile_size, *, tells_cached):
        # The cpu target's vision encoder can be told to stop, and its decoder tells of its cache.
        assert (tile_size is not None) == tells_cached
        self.cached = 32 if tells_cached else None

    def start(self, inputs, traceparent=None):
        self.asked.append(("tensorrt_llm", inputs))
        return self

    async def start_ensemble(self, ensemble, inputs, traceparent=None):
        self.asked.append((ensemble, inputs))
        return self

    async def __aiter__(self):
        for token in self.tokens:
            yield Decoded([token], cached=self.cached)
        while self.endless:
            await asyncio.sleep(0.01)

    async def stop(self):
        type(self).stopped = True

    async def close(self):
        """Nothing to close."""


class Prepared:
    """The preprocessor: one tile for a request with images; refuses and fails on demand."""

    error: Exception | None = None

    def __init__(self, spec, tokenizer):
        """Takes what the real one takes."""

    def run(self, tensors, wanted, watch):
        if self.error is not None:
            raise self.error
        outputs = {
            "num_tiles": np.array([1 if "image_bytes" in tensors else 0], np.int32),
            "tiles": np.zeros((1, 2, 2, 3), np.uint8),
            "input_lengths": np.array([[3]], np.int32),
            "request_output_len": np.array([[50]], np.int32),
        }
        return {name: values for name, values in outputs.items() if name in wanted}


@pytest.fixture
def nvlm(load, tokenizer):
    """The orchestrator over a preprocessor and a decoder that answer."""
    kind = type("ThisDecoder", (Decoder,), {"tokens": tuple(tokenizer.encode_text("Hello there")), "asked": []})
    prepared = type("ThisPreprocessor", (Prepared,), {})
    model = load("nvlm", DecodeClient=kind, Preprocessor=prepared)
    model.kind, model.prepared = kind, prepared
    return model


def texts_of(sender):
    return [response.values()["text_output"][0].decode() for response, _ in sender.sent]


def test_nvlm_answers_whole_and_in_pieces(nvlm, request_of, text):
    whole = request_of({"text_input": text("x")})
    pieces = request_of({"text_input": text("x"), "image_bytes": text("f"), "stream": np.array([True])})
    nvlm.execute([whole, pieces])
    wait(lambda: whole.sender.final and pieces.sender.final)
    assert texts_of(whole.sender) == ["Hello there"]
    assert "".join(texts_of(pieces.sender)) == "Hello there"
    assert len(pieces.sender.sent) > 1
    assert whole.sender.sent[0][0].values()["finish_reason"].tolist() == [b"stop"]
    assert whole.sender.sent[0][0].values()["num_cached_tokens"].tolist() == [32]


def test_nvlm_of_a_repository_whose_decoder_does_not_tell_of_cached_tokens_is_silent_about_them(
    load, gpu_spec, request_of, text, nvlm
):
    silent = load("nvlm", spec=gpu_spec, DecodeClient=nvlm.kind, Preprocessor=nvlm.prepared)
    request = request_of({"text_input": text("x")})
    silent.execute([request])
    wait(lambda: request.sender.final)
    assert "num_cached_tokens" not in request.sender.sent[0][0].values()


def test_nvlm_hands_tiles_to_the_ensemble_and_texts_to_the_decoder_itself(nvlm, request_of, text):
    for fields in ({"text_input": text("x"), "image_bytes": text("f")}, {"text_input": text("x")}):
        request = request_of(fields)
        nvlm.execute([request])
        wait(lambda request=request: request.sender.final)
    (first, inputs), (second, plain) = nvlm.kind.asked
    assert (first, second) == ("multimodal_decoder", "tensorrt_llm")
    assert inputs["tiles"].shape == (1, 2, 2, 3)
    assert set(plain) == set(inputs) - {"tiles"}


def rows_of(inputs):
    """Rows that hold the number of their tile, in bfloat16."""
    numbers = torch.from_numpy(inputs["tiles"][:, 0, 0, 0].astype(np.float32)).to(torch.bfloat16)
    return numbers.reshape(-1, 1, 1).expand(-1, 16, 128)


def test_tile_parallel_vision_asks_for_parts_in_host_memory_and_joins_them_in_order(
    load, backend, gpu_spec, request_of, response_of
):
    backend.answers["vision_encoder"] = lambda inputs, wanted: response_of(prompt_table=rows_of(inputs))
    model = load("tile_parallel_vision", spec=gpu_spec)
    tiles = np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1) * np.ones((7, 2, 2, 3), np.uint8)
    (response,) = asyncio.run(model.execute([request_of({"tiles": tiles})]))
    table = response.values()["prompt_embedding_table"]
    assert table.dtype == torch.bfloat16
    assert table[0, :, 0].tolist() == np.repeat(np.arange(7.0), 16).tolist()
    assert [len(inputs["tiles"]) for _, inputs in backend.calls] == [2, 2, 2, 1]
    assert {memory for memory, _ in backend.calls} == {("cpu", 0)}


def test_tile_parallel_vision_fails_the_request_of_a_part_that_failed_and_no_other(
    load, backend, gpu_spec, request_of, response_of, failed_response, caplog
):
    def answer(inputs, wanted):
        return failed_response if (inputs["tiles"] == 13).any() else response_of(prompt_table=rows_of(inputs))

    backend.answers["vision_encoder"] = answer
    model = load("tile_parallel_vision", spec=gpu_spec)
    bad, good = (np.full((5, 2, 2, 3), value, np.uint8) for value in (13, 1))
    first, second = asyncio.run(model.execute([request_of({"tiles": bad}), request_of({"tiles": good})]))
    assert first.error().message() == "internal error: the model vision_encoder failed; the server's log says why"
    assert second.values()["prompt_embedding_table"].shape == (1, 80, 128)


def test_tile_parallel_vision_tells_that_it_waits_for_an_engine(load, backend, gpu_spec, request_of):
    model = load("tile_parallel_vision", spec=gpu_spec)
    told = []

    def rows(inputs, wanted):
        told.append((model.work.begun, model.work.going))
        raise RuntimeError

    backend.answers["vision_encoder"] = rows
    tiles = np.zeros((1, 112, 112, 3), np.uint8)
    asyncio.run(model.execute([request_of({"tiles": tiles}), request_of({"tiles": tiles})]))
    assert told == [(1, True), (2, True)]
    assert not model.work.going


def test_tile_parallel_vision_is_no_model_of_the_cpu_target(load):
    with pytest.raises(EngineError, match="cpu target"):
        load("tile_parallel_vision")


def unsendable(response=None, flags=0):
    if flags:
        raise RuntimeError("no memory")


@pytest.mark.parametrize(
    ("name", "patches", "tensors"),
    [
        ("vision_encoder", {"VisionRunner": Runner}, {"tiles": np.zeros((1, 2, 2, 3), np.uint8)}),
        ("tensorrt_llm", {"DecoderEngine": Engine}, {"input_ids": np.array([[1, 2]], np.int32)}),
        ("nvlm", {"DecodeClient": Decoder, "Preprocessor": Prepared}, {"text_input": np.array([b"x"], np.object_)}),
    ],
)
def test_a_process_that_cannot_end_a_request_says_that_it_stands_still(
    load, request_of, tmp_path, monkeypatch, name, patches, tensors
):
    monkeypatch.setenv("NVLM_TRT_HEARTBEAT_DIR", str(tmp_path))
    model = load(name, **patches)
    request = request_of(tensors)
    request.sender.send = unsendable
    model.execute([request])
    wait(lambda: [beat.still for beat in read_beats(tmp_path)] == [math.inf])


def test_nvlm_refuses_unknown_fields_and_what_preprocessing_refuses(nvlm, backend, request_of, text):
    unknown = request_of({"text_input": text("x")}, text_parameters='{"temprature": 1}')
    nvlm.execute([unknown])
    wait(lambda: unknown.sender.final)
    assert "did you mean temperature" in unknown.sender.sent[0][0].error().message()
    nvlm.prepared.error = ImageRejected("no such image")
    refused = request_of({"text_input": text("x")})
    nvlm.execute([refused])
    wait(lambda: refused.sender.final)
    error = refused.sender.sent[0][0].error()
    assert (error.message(), error.code()) == ("no such image", backend.TritonError.INVALID_ARG)
    coded = request_of({"text_input": text("x")}, text_parameters='{"error_codes": true}')
    nvlm.execute([coded])
    wait(lambda: coded.sender.final)
    assert coded.sender.sent[0][0].error().message() == "[INVALID_ARG] no such image"


def test_nvlm_hides_what_a_broken_part_says(nvlm, backend, request_of, text, caplog):
    nvlm.prepared.error = RuntimeError("at 0x7f00")
    request = request_of({"text_input": text("x")})
    nvlm.execute([request])
    wait(lambda: request.sender.final)
    error = request.sender.sent[0][0].error()
    assert error.message() == "internal error: the server failed on this request; its log says why"
    assert error.code() == backend.TritonError.INTERNAL
    assert "at 0x7f00" in caplog.text


def test_nvlm_prepares_texts_while_photographs_are_prepared(nvlm, monkeypatch, request_of, text):
    held, run = threading.Event(), nvlm.prepared.run

    def slow(self, tensors, wanted, watch):
        if "image_bytes" in tensors:
            assert held.wait(timeout=30)
        return run(self, tensors, wanted, watch)

    monkeypatch.setattr(nvlm.prepared, "run", slow)
    images = [request_of({"text_input": text("x"), "image_bytes": text("f")}) for _ in range(40)]
    plain = request_of({"text_input": text("x")})
    nvlm.execute([*images, plain])
    wait(lambda: plain.sender.final)
    assert not any(image.sender.sent for image in images)
    held.set()
    wait(lambda: all(image.sender.final for image in images))


def test_nvlm_gives_up_with_its_client(nvlm, request_of, text):
    nvlm.kind.endless = True
    request = request_of({"text_input": text("x"), "stream": np.array([True])})
    nvlm.execute([request])
    wait(lambda: len(request.sender.sent) > 0)
    request.sender.cancelled = True
    wait(lambda: request.sender.final and nvlm.kind.stopped and not nvlm.tasks)


def test_nvlm_ends_the_requests_of_an_id_that_is_cancelled_and_no_others(nvlm, request_of, text):
    nvlm.kind.endless = True
    asked = {identity: request_of({"text_input": text("x")}, identity=identity) for identity in ("a", "b", "")}
    nvlm.execute(list(asked.values()))
    cancel = '{"cancel_request": true}'
    cancels = [request_of({}, identity=identity, text_parameters=cancel) for identity in ("a", "unknown", "")]
    nvlm.execute(cancels)
    wait(lambda: asked["a"].sender.final and all(cancel.sender.final for cancel in cancels))
    for ended in (*cancels, asked["a"]):  # tritonserver 2.51 sends no last response that holds nothing
        assert [response.values()["finish_reason"].tolist() for response, _ in ended.sender.sent] == [[b""]]
    wait(lambda: len(nvlm.tasks) == 2)
    for name in ("b", ""):
        asked[name].sender.cancelled = True
    wait(lambda: not nvlm.tasks)


def test_nvlm_ends_a_request_by_the_id_that_stands_for_its_own(nvlm, request_of, text):
    nvlm.kind.endless = True
    by_way = '{"cancel_id": "secret"}'
    asked = request_of({"text_input": text("x")}, identity="told", text_parameters=by_way)
    nvlm.execute([asked])
    for identity in ("told", "secret"):
        assert not asked.sender.final
        end = request_of({}, identity=identity, text_parameters='{"cancel_request": true}')
        nvlm.execute([end])
        wait(lambda end=end: end.sender.final)
    wait(lambda: asked.sender.final and not nvlm.tasks)


def test_nvlm_refuses_more_than_it_can_hold(nvlm, request_of, text):
    nvlm.kind.endless = True
    nvlm.spec = type("Small", (), {"max_requests": 1})()
    first, second = (request_of({"text_input": text("x")}) for _ in range(2))
    nvlm.execute([first, second])
    wait(lambda: second.sender.final)
    assert second.sender.sent[0][0].error().message() == "unavailable: the server is busy; try again later"
    assert not first.sender.final
    first.sender.cancelled = True
    wait(lambda: first.sender.final)


def position_of(load, name, **patches):
    """What a model's heartbeat follows, and the model."""
    followed = []

    def progress(position, **_):
        followed.append(position)
        return lambda: 0.0

    model = load(name, Progress=progress, **patches)
    return followed[0], model


def test_a_decoder_that_waits_for_its_turn_does_not_hang_and_one_that_has_it_may(load, tmp_path, monkeypatch):
    monkeypatch.setenv("NVLM_TRT_HEARTBEAT_DIR", str(tmp_path))
    position, model = position_of(load, "tensorrt_llm", DecoderEngine=Engine)
    assert position() == model.engine.heartbeat
    vision = Turns(tmp_path)
    vision.take()
    waiting = threading.Thread(target=model.turns.take)
    waiting.start()
    wait(lambda: position() is None)
    vision.give()
    waiting.join()
    assert position() == model.engine.heartbeat
    model.turns.give()


@pytest.mark.parametrize(
    ("name", "patches"), [("tensorrt_llm", {"DecoderEngine": Engine}), ("vision_encoder", {"VisionRunner": Runner})]
)
@pytest.mark.parametrize("hung", ["computing", "sending"])
def test_what_computes_and_what_sends_may_hang(load, tmp_path, monkeypatch, name, patches, hung):
    monkeypatch.setenv("NVLM_TRT_HEARTBEAT_DIR", str(tmp_path))
    seconds = iter([7.0, 0.0] if hung == "computing" else [0.0, 7.0])

    def progress(position, **_):
        still = next(seconds)
        return lambda: still

    load(name, Progress=progress, **patches)
    wait(lambda: [beat.still for beat in read_beats(tmp_path)] == [7.0])


def test_vision_encoder_hangs_in_a_tile_that_does_not_end_though_nobody_wants_it_any_more(load, request_of):
    begun, ended = threading.Event(), threading.Event()

    class Stuck(Runner):
        def encode(self, tiles, given_up):
            begun.set()
            ended.wait(timeout=60)
            raise RuntimeError("cancelled")

        def cancel(self):
            """It does not hear."""

    position, model = position_of(load, "vision_encoder", VisionRunner=Stuck)
    assert position() is None
    asked, stop = (
        of_value(request_of, 1),
        request_of({"tiles": np.zeros((0, 2, 2, 3), np.uint8), "stop": np.array([True])}),
    )
    asked.identity = stop.identity = "a"
    model.execute([asked])
    assert begun.wait(timeout=30)
    model.execute([stop])
    wait(lambda: asked.sender.final)
    assert position() == model.turns.count
    ended.set()
    wait(lambda: position() is None)

"""The client without a server: what it sends, and how it puts errors."""

from __future__ import annotations

import asyncio
import io
import json
import socket

import grpc
import numpy as np
import PIL.ExifTags
import PIL.Image
import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from nvlm_trt.client import AsyncNvlmClient, NvlmClient, Options, sync
from nvlm_trt.client.request import build_inputs, image_bytes
from nvlm_trt.client.response import AnswerBuilder, error_of
from nvlm_trt.errors import ImageRejected, RequestError, ServerError, UserError
from nvlm_trt.serving.faults import UnavailableError

from .stand_in import StandIn


def sent(prompt="Why?", *, images=(), history=(), system=None, options=None, stream=False):
    inputs = build_inputs(
        prompt, images=images, history=history, system=system, options=options or Options(), stream=stream
    )
    return {tensor.name(): (tensor.datatype(), tensor.shape()) for tensor in inputs}


def test_only_what_was_said_is_sent():
    assert sent() == {"text_input": ("BYTES", [1]), "stream": ("BOOL", [1])}


def test_options_have_the_types_of_their_fields():
    options = Options(
        max_tokens=1, min_tokens=0, temperature=0.5, top_k=2, top_p=0.5, seed=3, stop_words=("a", "b"), max_tiles=4
    )
    fields = sent(options=options)
    assert fields["max_tokens"] == ("INT32", [1])
    assert fields["temperature"] == ("FP32", [1])
    assert fields["seed"] == ("UINT64", [1])
    assert fields["stop_words"] == ("BYTES", [2])


def test_a_history_is_sent_as_messages():
    inputs = build_inputs("And?", images=(), history=[("a", "b")], system="Be brief.", options=Options(), stream=True)
    names = {tensor.name() for tensor in inputs}
    assert names == {"messages", "system_message", "stream"}
    raw = next(tensor for tensor in inputs if tensor.name() == "messages")._get_content()
    assert [message["role"] for message in json.loads(raw[4:])] == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_tokens", 2**40), ("seed", -1), ("temperature", "hot"), ("temperature", 10**400), ("top_p", 1e39)],
)
def test_a_value_that_does_not_fit_its_type_is_refused_here(name, value):
    with pytest.raises(RequestError, match=f"{name} does not fit its type"):
        sent(options=Options(**{name: value}))


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"prompt": "half \ud800"}, "text_input"),
        ({"prompt": "half \ud800", "history": [("Why?", "So.")]}, "messages"),
        ({"history": [("Why?", "\udcff")]}, "messages"),
        ({"system": "\udcff"}, "system_message"),
        ({"options": Options(stop_words=("\udcff",))}, "stop_words"),
    ],
)
def test_half_a_surrogate_pair_is_refused_here(said, field):
    plain = {"prompt": "hello", "images": [], "history": [], "system": None, "options": Options(), "stream": False}
    with pytest.raises(RequestError, match=f"^{field} holds half a surrogate pair, or bytes that are no UTF-8"):
        build_inputs(**plain | said)


def test_an_image_can_be_a_path_bytes_or_an_image(tmp_path):
    image = PIL.Image.new("RGB", (4, 3), "red")
    file = tmp_path / "red.png"
    image.save(file)
    assert image_bytes(file) == image_bytes(str(file)) == image_bytes(file.read_bytes()) == file.read_bytes()
    assert PIL.Image.open(io.BytesIO(image_bytes(image))).getpixel((0, 0)) == (255, 0, 0)
    assert sent(images=[image, file])["image_bytes"] == ("BYTES", [2])


@pytest.mark.parametrize(("orientation", "told"), [(None, {}), (6, {PIL.ExifTags.Base.Orientation: 6}), ("left", {})])
def test_a_photograph_is_sent_with_its_orientation_and_nothing_else_of_its_exif(orientation, told):
    image = PIL.Image.new("RGB", (4, 3))
    image.getexif()[PIL.ExifTags.Base.Artist] = "somebody"
    if orientation is not None:
        image.getexif()[PIL.ExifTags.Base.Orientation] = orientation
    sent = PIL.Image.open(io.BytesIO(image_bytes(image)))
    assert dict(sent.getexif()) == told


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "F", "I"])
def test_an_image_of_a_mode_that_png_lacks_is_refused_with_what_to_do(mode):
    with pytest.raises(ImageRejected, match=f"seen: mode {mode} .*; convert it to RGB"):
        image_bytes(PIL.Image.new(mode, (4, 3)))


def test_an_image_whose_exif_is_damaged_is_refused():
    image = PIL.Image.new("RGB", (4, 3))
    image.info["exif"] = b"Exif\0\0junk that is no TIFF"
    with pytest.raises(ImageRejected, match="cannot be sent as PNG"):
        image_bytes(image)


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(ImageRejected, match=r"none.png \(No such file"):
        image_bytes(tmp_path / "none.png")


class Result:
    """A response."""

    def __init__(self, text=None, reason=""):
        self.values = {} if text is None else {"text_output": text.encode(), "finish_reason": reason.encode()}

    def as_numpy(self, name):
        if not self.values:
            return None
        return np.array([self.values.get(name, 7)], dtype=object)


def test_pieces_join_to_the_answer():
    builder = AnswerBuilder()
    assert [builder.add(Result("Hel")), builder.add(Result("lo", "stop")), builder.add(Result())] == ["Hel", "lo", ""]
    answer = builder.finished()
    assert (answer.text, answer.finish_reason, answer.num_output_tokens) == ("Hello", "stop", 7)


def test_an_answer_that_breaks_off_is_an_error():
    builder = AnswerBuilder()
    builder.add(Result("Hel"))
    with pytest.raises(ServerError, match="broke off"):
        builder.finished()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("StatusCode.INVALID_ARGUMENT", RequestError),
        ("StatusCode.NOT_FOUND", RequestError),
        ("StatusCode.UNAVAILABLE", UnavailableError),
        ("StatusCode.INTERNAL", ServerError),
        (None, ServerError),
    ],
)
def test_errors_are_ours(status, kind):
    error = error_of(InferenceServerException("a sentence", status=status))
    assert type(error) is kind
    assert "a sentence" in str(error)


@pytest.mark.parametrize(
    ("model", "said", "kind"),
    [
        ("nvlm", "is not found", UnavailableError),
        ("nvlm", "has no available versions", UnavailableError),
        ("another", "is not found", RequestError),
    ],
    ids=["loading", "unloaded", "unknown"],
)
def test_a_server_that_is_loading_or_ending_is_to_be_asked_again(model, said, kind):
    sentence = f"Request for unknown model: '{model}' {said}"
    assert type(error_of(InferenceServerException(sentence, status="StatusCode.NOT_FOUND"))) is kind


@pytest.mark.parametrize(
    "sentence",
    [
        "Request for unknown model: 'nvlm' has no available versions",
        "GRPC server is shutting down and has stopped accepting new requests.",
        "Server is stopping, scheduler for model has stopped accepting new inference requests",
    ],
)
def test_what_an_ending_server_says_on_a_stream_has_no_code(sentence):
    assert type(error_of(InferenceServerException(sentence))) is UnavailableError


@pytest.fixture
def nobody() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize("client", [NvlmClient, AsyncNvlmClient])
@pytest.mark.parametrize("url", ["", "localhost", "localhost:99999", "http://localhost:1"])
def test_what_is_no_address_is_never_dialled(client, url):
    with pytest.raises(UserError, match=f"no address of a server; seen: {url or 'nothing'}; expected: HOST:PORT"):
        client(url)


def test_a_connection_that_is_in_use_when_its_client_is_closed_is_closed_when_it_is_free(monkeypatch):
    opened = []

    class Noted(InferenceServerClient):
        closed = False

        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            opened.append(self)

        def close(self):
            self.closed = True
            super().close()

    monkeypatch.setattr(sync.triton, "InferenceServerClient", Noted)
    with StandIn() as server:
        client = NvlmClient(server.url)
        stream = client.stream("a")
        client.close()
        assert [each.closed for each in opened] == [False]
        assert stream.answer.text == "re: a"
        assert [each.closed for each in opened] == [True]
        assert client.generate("b").text == "re: b"
        assert [each.closed for each in opened] == [True, True]


def test_a_server_that_is_not_there_is_a_clear_error(nobody):
    with NvlmClient(nobody) as client, pytest.raises(ServerError, match="cannot be reached"):
        client.generate("Hello")


def test_the_asyncio_client_says_the_same(nobody):
    async def ask() -> None:
        async with AsyncNvlmClient(nobody) as client:
            await client.generate("Hello")

    with pytest.raises(ServerError, match="cannot be reached"):
        asyncio.run(ask())


def test_an_asyncio_client_is_made_outside_of_an_event_loop_and_belongs_to_one_at_a_time():
    async def ask(client: AsyncNvlmClient, prompt: str) -> str:
        async with client:
            return (await client.generate(prompt)).text

    asyncio.run(asyncio.sleep(0))  # no loop is left for who looks for the current one
    with StandIn() as server:
        client = AsyncNvlmClient(server.url)
        assert [asyncio.run(ask(client, prompt)) for prompt in ("a", "b")] == ["re: a", "re: b"]


def test_the_blocking_client_tries_a_server_that_is_away_every_few_seconds(nobody, monkeypatch):
    """As the other does; by itself gRPC comes to wait for two minutes, and every request meanwhile fails at once."""
    opened, open_channel = [], grpc.insecure_channel

    def note(target, options):
        opened.append(dict(options))
        return open_channel(target, options=options)

    monkeypatch.setattr(grpc, "insecure_channel", note)
    with NvlmClient(nobody) as client, pytest.raises(ServerError):
        client.generate("Hello")
    assert opened[0]["grpc.max_reconnect_backoff_ms"] <= 5_000


def test_who_waits_for_the_whole_answer_asks_for_its_tokens_too_so_that_only_silence_ends_the_wait():
    async def ask(url: str) -> None:
        async with AsyncNvlmClient(url) as client:
            await client.generate("Hello")

    with StandIn() as server, NvlmClient(server.url) as client:
        client.generate("Hello")
        asyncio.run(ask(server.url))
        assert [asked["stream"] for asked in server.asked] == [[True], [True]]


def test_a_server_that_says_nothing_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"127.0.0.1:{silent.getsockname()[1]}"
        with NvlmClient(url, idle_timeout=0.3) as client, pytest.raises(ServerError, match="fell silent"):
            client.generate("Hello")

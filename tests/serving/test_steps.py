"""The small steps: vision batches, the table, the ensemble's text, errors as clients see them."""

from __future__ import annotations

import numpy as np
import pytest

from nvlm_trt.errors import (
    BusyError,
    EngineError,
    ImageRejected,
    PromptError,
    RequestError,
    ServerError,
    VerificationError,
)
from nvlm_trt.serving.faults import CancelledByClientError, UnavailableError, error_of, fault_of
from nvlm_trt.serving.postprocessing import answer
from nvlm_trt.serving.vision_encoder import as_table, encode_batch


class Encoder:
    """Rows that hold the tile's first value; 13 is a tile that it cannot encode."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def encode(self, tiles):
        self.calls.append(len(tiles))
        if (tiles == 13).any():
            raise ValueError("a bad tile at 0x7f00")
        return np.broadcast_to(tiles[:, :1, 0, :1].astype(np.float32), (len(tiles), 2, 3))


def tiles(*values: int) -> np.ndarray:
    return np.stack([np.full((4, 4, 3), value, np.uint8) for value in values])


def test_tiles_of_several_requests_run_as_one_batch():
    encoder = Encoder()
    results = encode_batch(encoder, [tiles(1, 2), tiles(3), tiles(4, 5, 6)])
    assert encoder.calls == [6]
    assert [rows[:, 0, 0].tolist() for rows in results] == [[1, 2], [3], [4, 5, 6]]


def test_a_bad_request_does_not_harm_its_batch_mates(caplog):
    results = encode_batch(Encoder(), [tiles(1), tiles(13), tiles(3)])
    assert results[0][0, 0, 0] == 1
    assert isinstance(results[1], ValueError)
    assert results[2][0, 0, 0] == 3
    assert "a batch of 3 requests failed" in caplog.text


def test_rows_become_one_table_without_a_copy():
    rows = np.arange(24, dtype=np.float32).reshape(3, 2, 4)
    table = as_table(rows)
    assert table.shape == (1, 6, 4)
    assert np.shares_memory(table, rows)
    assert table[0, 4].tolist() == rows[2, 0].tolist()


def test_ids_become_text_without_padding_and_end(tokenizer):
    ids = tokenizer.encode_text("Hello")
    padded = np.array([[[*ids, tokenizer.eos_id, 0, 0]]], np.int32)
    assert answer(tokenizer, padded, np.array([[len(ids) + 1]], np.int32)) == ("Hello", len(ids))
    assert answer(tokenizer, padded, np.array([[0]], np.int32)) == ("", 0)


@pytest.mark.parametrize(("shape", "length"), [((2, 1, 3), 1), ((1, 2, 3), 1), ((1, 1, 3), 4), ((1, 1, 3), -1)])
def test_other_answers_are_refused(tokenizer, shape, length):
    with pytest.raises(RequestError):
        answer(tokenizer, np.zeros(shape, np.int32), np.array([[length]], np.int32))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ImageRejected("x"), "INVALID_ARG"),
        (PromptError("x"), "INVALID_ARG"),
        (EngineError("x"), "INVALID_ARG"),
        (UnavailableError("x"), "UNAVAILABLE"),
        (BusyError("x"), "UNAVAILABLE"),
        (CancelledByClientError("x"), "CANCELLED"),
        (ServerError("x"), "INTERNAL"),
        (VerificationError("x"), "INTERNAL"),
        (KeyError("/secret/path"), "INTERNAL"),
    ],
)
def test_every_error_has_a_code(error, code):
    assert fault_of(error).code == code
    assert "secret" not in fault_of(error).message


@pytest.mark.parametrize("code", ["INVALID_ARG", "UNAVAILABLE", "CANCELLED"])
def test_an_error_keeps_its_code_between_models(code):
    assert fault_of(error_of(code, "a sentence")).code == code


@pytest.mark.parametrize(("code", "mark"), [("UNAVAILABLE", "unavailable: "), ("INVALID_ARG", "")])
def test_a_sentence_is_marked_once_however_many_models_it_passes(code, mark):
    first = fault_of(error_of(code, "a sentence"))
    assert first.message == f"{mark}a sentence"
    assert fault_of(error_of(code, first.message)) == first


def test_what_a_broken_model_says_stays_in_the_log():
    told = fault_of(error_of("INTERNAL", "Stub process 'x_0_0' is not healthy."))
    assert "Stub" not in told.message
    assert told.code == "INTERNAL"

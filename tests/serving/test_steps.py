"""The small steps: the ensemble's text, errors as clients see them."""

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


def test_a_model_that_is_not_loaded_yet_is_to_be_asked_again():
    error = error_of("NOT_FOUND", "Request for unknown model: 'tensorrt_llm' is not found")
    assert isinstance(error, UnavailableError)
    assert "tensorrt_llm" not in str(error)

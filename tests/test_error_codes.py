"""The code of an error travels in its text."""

from __future__ import annotations

import pytest

from nvlm_trt.error_codes import code_and_message, with_code


@pytest.mark.parametrize("code", ["INVALID_ARG", "UNAVAILABLE", "CANCELLED", "INTERNAL"])
def test_a_code_comes_back_as_it_was_put_in(code: str) -> None:
    message = "image 1 of 2: [odd]\nin two lines"
    assert code_and_message(with_code(code, message)) == (code, message)


def test_what_triton_says_of_a_step_stays_in_front_of_the_message() -> None:
    step = "in ensemble 'multimodal_decoder', "
    assert code_and_message(f"{step}[INTERNAL] it failed") == ("INTERNAL", f"{step}it failed")


@pytest.mark.parametrize(
    "text", ["", "Request for unknown model: 'x'", "[no code] x", "it said [INTERNAL] x", "[INTERNAL]"]
)
def test_what_carries_no_code_stays_as_it_is(text: str) -> None:
    assert code_and_message(text) == (None, text)

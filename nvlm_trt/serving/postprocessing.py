"""Ids of a whole answer to its text, for the ensemble."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nvlm_trt.decoder.stopping import answer_text
from nvlm_trt.errors import RequestError
from nvlm_trt.model.tokenizer import NvlmTokenizer


def answer(
    tokenizer: NvlmTokenizer, output_ids: npt.NDArray[np.int32], sequence_length: npt.NDArray[np.int32]
) -> tuple[str, int]:
    """The text of an answer and its number of tokens.

    Args:
        tokenizer: The checkpoint's tokenizer.
        output_ids: int32 [1, 1, n]: one request, one beam; padded beyond its length.
        sequence_length: int32 [1, 1].

    Returns:
        The text as the released chat() shapes it, and the number of tokens, the end token not counted.

    Raises:
        RequestError: there are several requests or beams, or the length is beyond the ids.
    """
    if output_ids.shape[:2] != (1, 1) or sequence_length.size != 1:
        raise RequestError(
            "one answer at a time",
            seen=f"{list(output_ids.shape)}, {sequence_length.size} lengths",
            expected="[1, 1, n]",
        )
    length = int(sequence_length.reshape(-1)[0])
    if not 0 <= length <= output_ids.shape[2]:
        raise RequestError("sequence_length is out of range", seen=length, expected=f"0 to {output_ids.shape[2]}")
    ids = output_ids[0, 0, :length].tolist()
    if ids and ids[-1] == tokenizer.eos_id:
        ids.pop()
    return answer_text(tokenizer, ids), len(ids)

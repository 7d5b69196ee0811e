"""Ask a served NVLM-D with nothing but tritonclient: plain_tritonclient.py HOST:PORT PICTURE QUESTION (gRPC port)."""

from __future__ import annotations

import queue
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton


def tensor(name: str, values: np.ndarray, datatype: str) -> triton.InferInput:
    """An input with its values."""
    made = triton.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values)
    return made


def main(url: str, picture: str, question: str) -> None:
    """Print the answer as it comes."""
    inputs = [
        tensor("text_input", np.array([question.encode()], dtype=np.object_), "BYTES"),
        tensor("image_bytes", np.array([Path(picture).read_bytes()], dtype=np.object_), "BYTES"),
        tensor("max_tokens", np.array([32], dtype=np.int32), "INT32"),
        tensor("stream", np.array([True]), "BOOL"),
    ]
    responses: queue.Queue = queue.Queue()
    client = triton.InferenceServerClient(url)
    # The callback's parameters must have exactly these names.
    client.start_stream(lambda result, error: responses.put((result, error)))
    client.async_stream_infer("nvlm", inputs)
    while True:
        result, error = responses.get(timeout=60)
        if error is not None:
            raise error
        sys.stdout.write(result.as_numpy("text_output")[0].decode())
        sys.stdout.flush()
        if result.as_numpy("finish_reason")[0]:
            break
    sys.stdout.write("\n")
    client.stop_stream()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Run the compiled vision encoder: RGB tiles in, rows of the decoder's prompt table out."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino as ov

from nvlm_trt.errors import EngineError, RequestError, ServerError
from nvlm_trt.turns import Turns
from nvlm_trt.vision.build_cpu import BIN_NAME, XML_NAME
from nvlm_trt.vision.description import CpuEngineDescription
from nvlm_trt.vision.slices import pause_between_slices

PRECISION_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "bf16"}
"""Always set: OpenVINO's own choice is bf16 wherever the processor has it. Of int8 it is for what stays in float."""


def _wanted() -> bool:
    return False


class VisionRunner:
    """The vision encoder of one engine directory, loaded once.

    Tiles are run one at a time. A tile is a thousand rows, which fill the processor, so batches gain nothing (0 to 5%
    measured); this way the memory is that of one tile, and a tile's result is the same, bit for bit, whatever else is
    in its batch. `encode` may be called from several threads: calls wait for one another.

    Args:
        engine_dir: The directory that `build_vision_cpu` wrote.
        threads: Processor threads to use; 0 takes all.
        turns: Where it takes turns with a decoder, slice by slice of a tile; None where there is none.

    Raises:
        EngineError: a file is missing, damaged, or not written by this version of nvlm-trt.
    """

    def __init__(self, engine_dir: Path, *, threads: int = 0, turns: Turns | None = None) -> None:
        description = CpuEngineDescription.load(engine_dir)
        _check_files(engine_dir, description)
        self._source = description.source
        self._lock = threading.Lock()
        self._turns = turns or Turns()
        settings = {
            "INFERENCE_PRECISION_HINT": PRECISION_HINTS[description.precision],
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
        }
        if threads:
            settings["INFERENCE_NUM_THREADS"] = str(threads)
        side = description.source.tile_size
        try:
            core = ov.Core()
            model = core.read_model(engine_dir / XML_NAME)
            model.reshape([1, side, side, 3])
            if turns is not None:
                pause_between_slices(model, turns.pass_on)
            self._request = core.compile_model(model, "CPU", settings).create_infer_request()
        except RuntimeError as error:
            raise EngineError(
                f"OpenVINO cannot load the vision engine ({str(error).strip().splitlines()[-1]})",
                seen=engine_dir,
                fix="build it again",
            ) from error

    @property
    def tile_size(self) -> int:
        """Side of a tile in pixels."""
        return self._source.tile_size

    @property
    def tokens_per_tile(self) -> int:
        """Rows of the prompt table that one tile makes."""
        return self._source.tokens_per_tile

    @property
    def hidden_size(self) -> int:
        """Width of a row."""
        return self._source.hidden_size

    def check(self, tiles: npt.NDArray[np.uint8]) -> None:
        """Look whether these are tiles that the engine takes.

        Raises:
            RequestError: they are of another type or shape.
        """
        side = self.tile_size
        if tiles.dtype != np.uint8:
            raise RequestError("tiles are of the wrong type", seen=tiles.dtype, expected="uint8")
        if tiles.ndim != 4 or tiles.shape[1:] != (side, side, 3):
            raise RequestError("tiles have the wrong shape", seen=list(tiles.shape), expected=f"[n, {side}, {side}, 3]")

    def encode(self, tiles: npt.NDArray[np.uint8], given_up: Callable[[], bool] = _wanted) -> npt.NDArray[np.float32]:
        """Encode tiles.

        Args:
            tiles: uint8 [n, tile_size, tile_size, 3], RGB; n may be 0.
            given_up: Whether nobody wants them any more; asked before each tile, when its turn has come.

        Returns:
            float32 [n, tokens_per_tile, hidden_size], the caller's own.

        Raises:
            RequestError: the tiles are of another type or shape.
            ServerError: they were given up.
        """
        self.check(tiles)
        table = np.empty((len(tiles), self.tokens_per_tile, self.hidden_size), dtype=np.float32)
        with self._lock:
            for tile, rows in zip(tiles, table, strict=True):
                with self._turns.taken():
                    if given_up():  # while it waited: `cancel` ends only what has been started
                        raise ServerError("the tile was given up")
                    self._request.start_async([np.ascontiguousarray(tile[np.newaxis])])
                    self._request.wait()  # infer() of one thread cannot be cancelled
                rows[:] = self._request.get_output_tensor().data[0]
        return table

    def cancel(self) -> None:
        """End the tile that is being encoded, from another thread, at the next operator: its `encode` raises."""
        self._request.cancel()


def _check_files(engine_dir: Path, description: CpuEngineDescription) -> None:
    """Catch what OpenVINO may load without a word: a graph of another build, weights cut short."""
    xml, weights = engine_dir / XML_NAME, engine_dir / BIN_NAME
    for path in (xml, weights):
        if not path.is_file():
            raise EngineError("a vision engine file is missing", seen=path, fix="build it again")
    if hashlib.sha256(xml.read_bytes()).hexdigest() != description.xml_sha256:
        raise EngineError("a vision engine file is not the one that was built", seen=xml, fix="build it again")
    if weights.stat().st_size != description.bin_bytes:
        raise EngineError(
            "a vision engine file has the wrong length",
            seen=f"{weights}: {weights.stat().st_size} bytes",
            expected=f"{description.bin_bytes} bytes",
            fix="build it again",
        )

"""An engine directory in this process: images and a question in, an answer out, no server.

Used by ``nvlm-trt generate`` and by the stage `verify`; the server runs the same parts as separate models.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nvlm_trt.decoder.engine import DecoderEngine
from nvlm_trt.decoder.kv_memory import KvCacheSettings
from nvlm_trt.decoder.request import DecodeRequest, FinishReason, SamplingParams
from nvlm_trt.decoder.request_handle import RequestHandle
from nvlm_trt.decoder.stopping import AnswerText
from nvlm_trt.engine_files import DECODER_CPU, ENGINE_FILES, RECIPE, TOKENIZER, VISION_CPU
from nvlm_trt.errors import EngineError, RequestError, ServerError
from nvlm_trt.model.config import load_config
from nvlm_trt.model.image import read_image
from nvlm_trt.model.prompt import Prompt, TileTags, Turn, build_prompt
from nvlm_trt.model.tiling import tile_image, tile_tags
from nvlm_trt.model.tokenizer import NvlmTokenizer
from nvlm_trt.recipe import load_recipe
from nvlm_trt.turns import Turns
from nvlm_trt.vision.encoder import TileEncoder
from nvlm_trt.vision.runner import VisionRunner


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in seconds.

    Attributes:
        preprocess_s: Reading and cutting the images, building the prompt.
        vision_s: The vision encoder.
        ttft_s: From the call to the first token (or to the end, when there is none).
        decode_s: From the first token to the end.
        tokens_per_s: Tokens after the first by `decode_s`; 0 with fewer than two.
    """

    preprocess_s: float
    vision_s: float
    ttft_s: float
    decode_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """An answer.

    Attributes:
        text: Its text, without special tokens, stop texts and white space at the ends.
        input_ids: The prompt for people: 151654 (``<|vision_pad|>``) at visual positions.
        output_ids: The tokens of the answer, without the stop id.
        finish_reason: "stop", "length" or "cancelled".
        tiles: Tiles of each image, thumbnail included.
        num_visual_tokens: Visual tokens in the prompt.
        timings: Where the time went.
    """

    text: str
    input_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    finish_reason: FinishReason
    tiles: tuple[int, ...]
    num_visual_tokens: int
    timings: Timings


@dataclass(frozen=True, slots=True)
class PreparedPrompt:
    """A prompt as the decoder takes it.

    Attributes:
        prompt: The prompt for people.
        decoder_ids: int32 [tokens], ``vocab_size + row`` at visual positions.
        table: float32 [rows, hidden] prompt table, None without images.
        preprocess_s: Seconds before the vision encoder.
        vision_s: Seconds in it.
    """

    prompt: Prompt
    decoder_ids: npt.NDArray[np.int32]
    table: npt.NDArray[np.float32] | None
    preprocess_s: float
    vision_s: float


class AnswerStream:
    """The text of an answer as it comes; the joined pieces are `result.text`.

    Iterate it once. Leaving the loop early and calling `close` ends the request.

    Attributes:
        arrivals: `time.perf_counter()` of each token of the answer so far.
    """

    def __init__(self, handle: RequestHandle, prepared: PreparedPrompt, text: AnswerText, started: float) -> None:
        self._handle = handle
        self._prepared = prepared
        self._text = text
        self._started = started
        self.arrivals: list[float] = []
        self._pieces: list[str] = []
        self._ids: list[int] = []
        self._reason: FinishReason | None = None
        self._result: GenerateResult | None = None
        self._deltas = self._run()

    def __iter__(self) -> Iterator[str]:
        return self._deltas

    def close(self) -> None:
        """End the request, if it has not ended."""
        self._handle.cancel()

    @property
    def result(self) -> GenerateResult:
        """The whole answer; reads the rest of the stream first."""
        for _ in self._deltas:
            pass
        if self._result is None:
            raise ServerError("the answer was not finished")
        return self._result

    def _run(self) -> Iterator[str]:
        for event in self._handle:
            if event.finish_reason == "error":
                raise ServerError(event.error or "the decoder failed")
            if event.token is not None and self._reason is None:
                self.arrivals.append(time.perf_counter())
                self._ids.append(event.token)
                yield from self._emit(self._text.push([event.token]))
                if self._text.stopped:
                    self._reason = "stop"
                    self._handle.cancel()
            self._reason = self._reason or event.finish_reason
        ended = time.perf_counter()
        yield from self._emit(self._text.flush())
        self._result = self._finished(ended)

    def _emit(self, piece: str) -> Iterator[str]:
        if piece:
            self._pieces.append(piece)
            yield piece

    def _finished(self, ended: float) -> GenerateResult:
        first = self.arrivals[0] if self.arrivals else ended
        decode = ended - first
        prompt = self._prepared.prompt
        return GenerateResult(
            text="".join(self._pieces),
            input_ids=prompt.input_ids,
            output_ids=tuple(self._ids),
            finish_reason=self._reason or "cancelled",
            tiles=prompt.tiles,
            num_visual_tokens=prompt.num_visual_tokens,
            timings=Timings(
                preprocess_s=self._prepared.preprocess_s,
                vision_s=self._prepared.vision_s,
                ttft_s=first - self._started,
                decode_s=decode,
                tokens_per_s=(len(self._ids) - 1) / decode if len(self._ids) > 1 and decode > 0 else 0.0,
            ),
        )


class LocalEngine:
    """The parts of an engine directory of the cpu target, loaded once. May be called from several threads.

    Args:
        engine_dir: ``engines/<recipe>``.

    Raises:
        EngineError: the directory is incomplete, or of the gpu target.
    """

    def __init__(self, engine_dir: Path) -> None:
        _check_complete(engine_dir, RECIPE)
        self.recipe = load_recipe(engine_dir / RECIPE)
        if self.recipe.target != "cpu":
            raise EngineError(
                "an engine of the gpu target answers through its server",
                seen=engine_dir,
                fix="start it with nvlm-trt serve",
            )
        _check_complete(engine_dir, *ENGINE_FILES)
        self.config = load_config(engine_dir)
        self.tokenizer = NvlmTokenizer.load(engine_dir / TOKENIZER)
        with tempfile.TemporaryDirectory(prefix="nvlm-trt-") as directory:
            seeing, decoding = self._turns = Turns(Path(directory)), Turns(Path(directory))
        runner = VisionRunner(engine_dir / VISION_CPU, threads=self.recipe.cpu_threads, turns=seeing)
        self.vision = TileEncoder(runner, cache_bytes=self.recipe.cpu_engine.vision_cache_mib << 20)
        fields = self.recipe.cpu_engine
        cache = KvCacheSettings(fields.kv_cache_mib, fields.kv_cache_precision, fields.kv_cache_reuse)
        decoder = engine_dir / DECODER_CPU
        self.decoder = DecoderEngine.load(decoder, threads=self.recipe.cpu_threads, cache=cache, turns=decoding)
        self._limits = self.recipe.image_limits.limits()
        self._names = itertools.count()

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every request and the engines' workers."""
        self.vision.close()
        self.decoder.close()
        for turns in self._turns:
            turns.close()

    def generate(
        self,
        question: str,
        sampling: SamplingParams | None = None,
        *,
        images: Sequence[bytes] = (),
        history: Sequence[Turn] = (),
        system: str | None = None,
    ) -> GenerateResult:
        """Answer a question; arguments and errors are those of `stream`."""
        return self.stream(question, sampling, images=images, history=history, system=system).result

    def stream(
        self,
        question: str,
        sampling: SamplingParams | None = None,
        *,
        images: Sequence[bytes] = (),
        history: Sequence[Turn] = (),
        system: str | None = None,
        max_tiles: int | None = None,
        tags: TileTags = tile_tags,
    ) -> AnswerStream:
        """Answer a question piece by piece.

        Args:
            question: The user's message.
            sampling: How tokens are chosen; None is greedy with the longest answer that the recipe and the room allow.
                The answer always stops at ``<|im_end|>`` too.
            images: Encoded image files, in the order of the ``<image>`` placeholders.
            history: Earlier questions and answers, oldest first.
            system: The system message; None for the release's own.
            max_tiles: Tiles an image is cut into at most; None for the recipe's.
            tags: The text in front of each tile; others than the model's own are for ablations.

        Raises:
            ImageRejected: an image cannot be read or is beyond the limits.
            PromptError: there are more images than placeholders.
            RequestError: too many images, more tiles than the recipe's, or the prompt and max_tokens are longer than
                the engine.
        """
        started = time.perf_counter()
        prepared = self.prepare(question, images=images, history=history, system=system, max_tiles=max_tiles, tags=tags)
        if sampling is None:
            room = self.decoder.config.max_seq_len - len(prepared.decoder_ids)
            sampling = SamplingParams(max(1, min(self.recipe.max_output_len, room)))
        text = AnswerText(self.tokenizer, sampling.stop)
        sampling = replace(sampling, stop_ids=(*sampling.stop_ids, self.tokenizer.eos_id))
        name = f"local-{next(self._names)}"
        handle = self.decoder.submit(DecodeRequest(name, prepared.decoder_ids, prepared.table, sampling))
        return AnswerStream(handle, prepared, text, started)

    def prepare(
        self,
        question: str,
        *,
        images: Sequence[bytes] = (),
        history: Sequence[Turn] = (),
        system: str | None = None,
        max_tiles: int | None = None,
        tags: TileTags = tile_tags,
    ) -> PreparedPrompt:
        """The decoder's inputs of a question: images read, tiled and encoded, the prompt tokenised.

        Arguments and errors are those of `stream`.
        """
        started = time.perf_counter()
        if len(images) > self.recipe.max_images:
            raise RequestError(
                "there are too many images", seen=len(images), expected=f"at most {self.recipe.max_images}"
            )
        tiles = [self.tiles(data, max_tiles) for data in images]
        prompt = build_prompt(
            self.tokenizer,
            self.config.tokens_per_tile,
            question,
            tiles=[len(cut) for cut in tiles],
            history=history,
            system=system,
            tags=tags,
        )
        longest = self.decoder.config.max_seq_len - 1
        prompt.check_length(min(self.recipe.max_input_len, longest))
        cut_at = time.perf_counter()
        table = (
            self.vision.encode(np.concatenate(tiles)).reshape(-1, self.config.decoder.hidden_size) if tiles else None
        )
        ids = prompt.decoder_ids(self.decoder.config.vocab_size)
        return PreparedPrompt(prompt, ids, table, cut_at - started, time.perf_counter() - cut_at)

    def tiles(self, data: bytes, max_tiles: int | None = None) -> npt.NDArray[np.uint8]:
        """The tiles of an image file as the recipe cuts it: uint8 [n, s, s, 3], thumbnail last.

        Args:
            data: The file's bytes.
            max_tiles: Tiles of the grid at most; None for the recipe's.

        Raises:
            ImageRejected: the image cannot be read or is beyond the limits.
            RequestError: `max_tiles` is more than the recipe's.
        """
        most = self.recipe.max_tiles
        if max_tiles is not None and not 1 <= max_tiles <= most:
            raise RequestError("max_tiles is out of range", seen=max_tiles, expected=f"1 to {most}")
        image = read_image(data, self._limits, exif_orientation=self.recipe.exif_orientation)
        return tile_image(
            image,
            max_tiles=max_tiles or most,
            tile_size=self.config.tile_size,
            use_thumbnail=self.config.use_thumbnail,
        )


def _check_complete(engine_dir: Path, *names: str) -> None:
    for name in names:
        if not (engine_dir / name).exists():
            raise EngineError(
                "the engine directory is incomplete", seen=f"no {name} in {engine_dir}", fix="run nvlm-trt build"
            )

"""From a request to what the vision encoder and the decoder take."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nvlm_trt.decoder.request import SamplingParams, check_length
from nvlm_trt.errors import ImageRejected
from nvlm_trt.model.image import decoding_bytes, read_image
from nvlm_trt.model.pixels import give_memory_back
from nvlm_trt.model.prompt import build_prompt
from nvlm_trt.model.tiling import tile_image
from nvlm_trt.model.tokenizer import NvlmTokenizer
from nvlm_trt.serving.decoding_room import DecodingRoom
from nvlm_trt.serving.requests import Question, Tensors, parse_question
from nvlm_trt.serving.spec import ServingSpec

Array = npt.NDArray[Any]

MAX_THREADS = 8
"""Threads that read images, where the recipe names no number: a request has few images, and others want cores too."""

DECODING_BYTES = 1 << 30
"""What all images together may take while they are read: ten photographs of 12 megapixels, or one of 50 in the
costliest format."""

KEPT_BYTES = 1 << 28
"""Memory of images that took more is given back to the system at once; of others it is kept for the next ones, which
saves a third of the time of decoding them (docs/performance/log.md)."""

TILES = "tiles"
NUM_TILES = "num_tiles"


@dataclass(frozen=True, slots=True)
class Images:
    """The images of a request, cut: uint8 [n, s, s, 3], tiles of each image, and a digest of each image."""

    tiles: npt.NDArray[np.uint8]
    counts: tuple[int, ...]
    digests: tuple[int, ...]


class Preprocessor:
    """Reads images, cuts them, writes the prompt and tokenises it.

    Args:
        spec: Shapes and limits.
        tokenizer: The checkpoint's tokenizer.

    Attributes:
        threads: Images that are read at the same time.
    """

    def __init__(self, spec: ServingSpec, tokenizer: NvlmTokenizer) -> None:
        self._spec = spec
        self._tokenizer = tokenizer
        self.threads = spec.cpu_threads or min(len(os.sched_getaffinity(0)), MAX_THREADS)
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="image")
        self._room = DecodingRoom(DECODING_BYTES)

    def run(
        self, tensors: Tensors, wanted: Collection[str], watch: Callable[[], None] = lambda: None
    ) -> dict[str, Array]:
        """Prepare one request.

        Args:
            tensors: The request's fields (`nvlm_trt.serving.fields.REQUEST_FIELDS`).
            wanted: Names of the outputs that are asked for; `tiles` is made only where it is.
            watch: Called now and then while images are read, from several threads; what it raises ends that.

        Returns:
            num_tiles int32 [1]; tiles uint8 [n, s, s, 3], one black tile where there is none (an ensemble cannot carry
            zero tiles, and no id refers to its rows); and the decoder's inputs by their names there, each with a
            leading batch dimension of 1.

        Raises:
            UserError: a field, an image or the prompt is refused.
        """
        question = parse_question(tensors, self._spec)
        images = self._cut(question, watch)
        conversation = question.conversation
        prompt = build_prompt(
            self._tokenizer,
            self._spec.tokens_per_tile,
            conversation.question,
            tiles=images.counts,
            history=conversation.history,
            system=conversation.system,
            limit=self._spec.max_input_len,
        )
        prompt.check_length(self._spec.max_input_len)
        ids = prompt.decoder_ids(self._spec.vocab_size)
        sampling = question.sampling
        if "max_tokens" not in tensors:
            room = self._spec.max_seq_len - ids.size
            sampling = replace(sampling, max_tokens=min(sampling.max_tokens, room))
        check_length(ids.size, sampling.max_tokens, self._spec.max_seq_len, "engine")
        outputs: dict[str, Array] = {
            "input_ids": ids[np.newaxis],
            "prompt_table_extra_ids": self._extra_ids(ids, images)[np.newaxis],
            NUM_TILES: np.array([len(images.tiles)], np.int32),
            **self._scalars(sampling, question.stream, ids.size, prompt.num_visual_tokens),
        }
        if TILES in wanted:
            side = self._spec.tile_size
            outputs[TILES] = images.tiles if len(images.tiles) else np.zeros((1, side, side, 3), np.uint8)
        return {name: array for name, array in outputs.items() if name in wanted}

    def _cut(self, question: Question, watch: Callable[[], None]) -> Images:
        """One image has its tiles made by all threads; of several, each is read and cut by a thread of its own."""
        side, files = self._spec.tile_size, question.images
        # Room is waited for here, and never by the pool's threads: who has room may need them.
        with self._room_for(question, watch):
            if len(files) == 1:
                cut = [self._cut_one(question, 0, self._pool if self.threads > 1 else None, watch)]
            else:
                cut = list(self._pool.map(lambda place: self._cut_one(question, place, None, watch), range(len(files))))
        tiles = [one for one, _ in cut] or [np.zeros((0, side, side, 3), np.uint8)]
        joined = tiles[0] if len(tiles) == 1 else np.concatenate(tiles)
        return Images(joined, tuple(len(one) for one, _ in cut), tuple(digest for _, digest in cut))

    @contextmanager
    def _room_for(self, question: Question, watch: Callable[[], None]) -> Iterator[None]:
        """Memory to read a request's images in: as many are read at the same time as there are threads."""
        files, takes = question.images, []
        for place, file in enumerate(files):
            with _numbered(place, len(files)):
                takes.append(decoding_bytes(file, self._spec.image_limits))
        size = sum(sorted(takes)[-self.threads :])
        with self._room.hold(size, watch):
            try:
                yield
            finally:
                if size > KEPT_BYTES:
                    give_memory_back()

    def _cut_one(
        self, question: Question, place: int, pool: Executor | None, watch: Callable[[], None]
    ) -> tuple[npt.NDArray[np.uint8], int]:
        """Tiles and digest of an image; None for `pool` where it is the pool's own thread that asks."""
        spec, files = self._spec, question.images
        watch()
        with _numbered(place, len(files)):
            image = read_image(files[place], spec.image_limits, exif_orientation=question.exif_orientation, watch=watch)
        watch()
        tiles = tile_image(
            image,
            max_tiles=question.max_tiles,
            tile_size=spec.tile_size,
            use_thumbnail=spec.use_thumbnail,
            pool=pool,
        )
        return tiles, image_digest(tiles)

    def _extra_ids(self, ids: npt.NDArray[np.int32], images: Images) -> npt.NDArray[np.uint64]:
        """The image's digest at each of its visual tokens, 0 at text: keys of TensorRT-LLM's KV block reuse."""
        extra = np.zeros(ids.size, np.uint64)
        repeats = [count * self._spec.tokens_per_tile for count in images.counts]
        extra[ids >= self._spec.vocab_size] = np.repeat(np.array(images.digests, np.uint64), repeats)
        return extra

    def _scalars(self, sampling: SamplingParams, stream: bool, length: int, rows: int) -> dict[str, Array]:
        end = self._tokenizer.eos_id
        values: dict[str, np.generic] = {
            "input_lengths": np.int32(length),
            "request_output_len": np.int32(sampling.max_tokens),
            "end_id": np.int32(end),
            "pad_id": np.int32(end),
            "min_tokens": np.int32(sampling.min_tokens),
            "repetition_penalty": np.float32(sampling.repetition_penalty),
            "seed": np.uint64(_seed(sampling)),
            "streaming": np.bool_(stream),
            "return_log_probs": np.bool_(False),  # nvlm asks for them, after this
            "prompt_vocab_size": np.int32(max(rows, 1)),
            **_choice(sampling),
        }
        return {name: np.array([[value]]) for name, value in values.items()}


@contextmanager
def _numbered(place: int, count: int) -> Iterator[None]:
    """Have a refusal tell of which image it is."""
    try:
        yield
    except ImageRejected as error:
        raise error.numbered(place, count) from None


def _seed(sampling: SamplingParams) -> int:
    """The seed that was named, or one of its own for each request that samples: without one, decoders take 0."""
    if sampling.seed is not None:
        return sampling.seed
    return 0 if sampling.greedy else secrets.randbits(64)


def _choice(sampling: SamplingParams) -> dict[str, np.generic]:
    """Temperature, top-k and top-p as TensorRT-LLM reads them: greedy is top-k 1, and top-p 1 keeps every token."""
    if sampling.greedy:
        return {"temperature": np.float32(1), "runtime_top_k": np.int32(1), "runtime_top_p": np.float32(1)}
    return {
        "temperature": np.float32(1 if sampling.temperature is None else sampling.temperature),
        "runtime_top_k": np.int32(sampling.top_k or 0),
        "runtime_top_p": np.float32(sampling.top_p or 1),
    }


def image_digest(tiles: npt.NDArray[np.uint8]) -> int:
    """63 bits that tell images apart by their pixels, never 0 (TensorRT-LLM keys cached blocks with it)."""
    digest = hashlib.blake2b(np.ascontiguousarray(tiles).data, digest_size=8)
    return (int.from_bytes(digest.digest(), "little") >> 1) or 1

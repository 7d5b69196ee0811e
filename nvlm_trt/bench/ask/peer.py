"""Ask an engine of others with the token ids that ours gets."""

from __future__ import annotations

import base64
import itertools
import os
import subprocess
import time
from pathlib import Path
from typing import Any, Final

from nvlm_trt.bench.peers.engines import CONVERTER, PEERS, converted_model, python_of
from nvlm_trt.bench.peers.process import PeerProcess
from nvlm_trt.bench.record import RequestRecord
from nvlm_trt.bench.subjects import PeerSubject
from nvlm_trt.bench.workload import Question
from nvlm_trt.engine_files import TOKENIZER, engine_recipe
from nvlm_trt.errors import FaultError, UserError
from nvlm_trt.model.config import load_config
from nvlm_trt.model.image import read_image
from nvlm_trt.model.prompt import IMAGE_PLACEHOLDER, build_prompt
from nvlm_trt.model.tiling import plan_grid
from nvlm_trt.model.tokenizer import NvlmTokenizer

WORKERS: Final = Path(__file__).parents[1] / "peers" / "workers"

PRELOADED: Final = ("preload/libtcmalloc_minimal.so.4", "lib/libiomp5.so")
"""What vLLM's documentation tells to preload, below its environment; scripts/peers.sh puts them there."""

WAITING: Final = {"KMP_BLOCKTIME": "5", "KMP_TPAUSE": "0"}
"""How vLLM lets the threads of Intel's OpenMP wait, where it sets them up itself."""

TAGS_MAY_DIFFER: Final = 4
"""Tokens by which a prompt with an image may differ from ours: whoever puts the tags in by itself may cut the text
beside them otherwise. Visual tokens are hundreds, so that another tiling is found out."""


class PeerAsker:
    """An engine of others, started and loaded when this is made.

    Args:
        subject: Which, and where things lie.
        max_tokens: Tokens of every answer.

    Raises:
        FaultError: it cannot be started or loaded, or the decoder cannot be converted for it.
    """

    def __init__(self, subject: PeerSubject, max_tokens: int) -> None:
        self._peer, self._max_tokens = PEERS[subject.peer], max_tokens
        self._recipe, self._config = engine_recipe(subject.engine), load_config(subject.engine)
        self._tokenizer = NvlmTokenizer.load(subject.engine / TOKENIZER)
        self._limits = self._recipe.image_limits.limits()
        self._numbers = itertools.count()
        job: dict[str, Any] = {
            "checkpoint": str(subject.checkpoint),
            "precision": self._peer.precision,
            "eager": self._peer.eager,
            "threads": self._recipe.cpu_threads,
            "max_requests": self._recipe.max_batch_size,
            "max_model_len": self._recipe.max_seq_len(self._config.decoder.max_position_embeddings),
            "max_tiles": self._recipe.max_tiles,
        }
        if self._peer.converted:
            job["model"] = str(_converted(subject))
        command: list[str | Path] = [
            python_of(subject.folder, self._peer.environment),
            WORKERS / "serve.py",
            self._peer.module,
        ]
        environment = _environment(subject.folder / self._peer.environment, self._recipe.cpu_threads)
        self._process = PeerProcess(command, environment, job)

    @property
    def load_s(self) -> float:
        """Seconds from nothing to ready, libraries imported before."""
        return float(self._process.loaded["load_s"])

    @property
    def before_bytes(self) -> int:
        """Resident memory of its process before loading."""
        return int(self._process.loaded["before_bytes"])

    @property
    def settings(self) -> str:
        """How it was set up, in its own words."""
        return str(self._process.loaded["settings"])

    def peak_bytes(self) -> int:
        """Largest resident memory of its process."""
        return self._process.peak_bytes()

    def ask(self, question: Question) -> RequestRecord:
        """Ask and wait for the whole answer.

        Ids of text are made before the clock starts. An image is sent as its file: reading, cutting, the prompt and the
        vision encoder are in the time.

        Raises:
            UserError: the peer reads no images, or reads another prompt than ours.
            ServerError: it failed.
        """
        if question.images and not self._peer.images:
            raise UserError("it reads no images")
        tiles = [self._tiles(data) for data in question.images]
        prompt = build_prompt(
            self._tokenizer, self._config.tokens_per_tile, question.text, tiles=tiles, history=question.history
        )
        request: dict[str, Any] = {
            "id": next(self._numbers),
            "ids": list(prompt.input_ids),
            "max_tokens": question.max_tokens or self._max_tokens,
        }
        if question.images:
            request |= {"text": self._unexpanded(question), "image": base64.b64encode(question.images[0]).decode()}
        started = time.perf_counter()
        answer = self._process.ask(request)
        arrivals = [at - started for at in answer["times"]]
        read = int(answer["prompt_tokens"])
        if abs(read - len(prompt.input_ids)) > (TAGS_MAY_DIFFER if question.images else 0):
            raise UserError("it reads another prompt", seen=f"{read} tokens", expected=len(prompt.input_ids))
        parts = None if question.images else 0.0
        return RequestRecord(
            ttft_s=arrivals[0],
            total_s=arrivals[-1],
            prompt_tokens=read,
            output_tokens=len(answer["tokens"]),
            images=len(question.images),
            tiles=sum(tiles),
            preprocess_s=parts,
            vision_s=parts,
            arrivals_s=tuple(arrivals),
        )

    def close(self) -> None:
        """End its process."""
        self._process.close()

    def _tiles(self, data: bytes) -> int:
        image = read_image(data, self._limits, exif_orientation=self._recipe.exif_orientation)
        return plan_grid(
            image.width,
            image.height,
            max_tiles=self._recipe.max_tiles,
            tile_size=self._config.tile_size,
            use_thumbnail=self._config.use_thumbnail,
        ).num_tiles

    def _unexpanded(self, question: Question) -> str:
        """The text of the prompt with placeholders in it."""
        said = [question.text, *(message for turn in question.history for message in turn)]
        placed = any(IMAGE_PLACEHOLDER in message for message in said)
        text = question.text if placed else f"{IMAGE_PLACEHOLDER}\n" * len(question.images) + question.text
        return build_prompt(self._tokenizer, self._config.tokens_per_tile, text, history=question.history).text


def _environment(folder: Path, threads: int | None) -> dict[str, str]:
    """Variables of a peer's process: what it compiles is kept in its environment.

    Where OpenMP is preloaded, its threads are bound to cores, one each. vLLM would do so for a process that it starts
    for the model, and would keep one core free for its own; here both are one process, which gets all cores.
    What our own environment says of threads holds instead.
    """
    found = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    found |= {"VLLM_CACHE_ROOT": str(folder / "cache"), "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache" / "inductor")}
    preloaded = [str(folder / name) for name in PRELOADED if (folder / name).exists()]
    if preloaded:
        cores = [str(core) for core in sorted(os.sched_getaffinity(0))[: threads or None]]
        bound = f"granularity=fine,explicit,proclist=[{','.join(cores)}]"
        threading = {"OMP_NUM_THREADS": str(len(cores)), "KMP_AFFINITY": bound, **WAITING}
        found = {**threading, **found, "LD_PRELOAD": ":".join(preloaded)}
    return found


def _converted(subject: PeerSubject) -> Path:
    """The decoder of the checkpoint in the peer's own format, made where it is not there yet.

    Raises:
        FaultError: it cannot be made.
    """
    model = converted_model(subject.peer, subject.folder, subject.checkpoint)
    if not model.is_dir():
        python, precision = python_of(subject.folder, CONVERTER), PEERS[subject.peer].precision
        done = subprocess.run(
            [python, WORKERS / "export_genai.py", subject.checkpoint, precision, model],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        if done.returncode:
            words = done.stdout.decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise FaultError("the decoder cannot be converted for the peer", seen=words[-1])
    return model

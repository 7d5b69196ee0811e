"""The vision encoder for many requests at once: tiles in turn, none that was seen before."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from nvlm_trt.errors import ServerError
from nvlm_trt.vision.cache import RowCache, VisionCacheStatus, tile_key

Tiles = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.float32]
Done: TypeAlias = Callable[[Rows | Exception], None]
GiveUp: TypeAlias = Callable[[], bool]

log = logging.getLogger(__name__)


class Runner(Protocol):
    """What is needed of `nvlm_trt.vision.runner.VisionRunner`."""

    @property
    def tokens_per_tile(self) -> int:
        """Rows of one tile."""

    @property
    def hidden_size(self) -> int:
        """Width of a row."""

    def check(self, tiles: Tiles) -> None:
        """Raise RequestError where these are no tiles."""

    def encode(self, tiles: Tiles, given_up: Callable[[], bool]) -> Rows:
        """Rows float32 [n, tokens_per_tile, hidden] of tiles uint8 [n, s, s, 3].

        It raises where `given_up` is true before it begins.
        """

    def cancel(self) -> None:
        """End the `encode` that runs, from another thread: it raises; nothing to do where none runs."""


class _Job:
    """One request: its tiles by their keys, the rows that are there, the tiles that it still waits for."""

    def __init__(self, keys: Sequence[bytes], done: Done) -> None:
        self.keys = keys
        self.done = done
        self.rows: dict[bytes, Rows] = {}
        self.waiting: dict[bytes, Tiles] = {}

    def take(self, key: bytes, rows: Rows) -> None:
        """The rows of a tile have come."""
        self.rows[key] = rows
        self.waiting.pop(key, None)


class TileEncoder:
    """Encodes the tiles of several requests in turn. All methods may be called from any thread.

    Of the requests that wait, each has one tile encoded, then it is the next one's turn: a request that waits for `n`
    tiles beside `k` others has its rows after at most ``(k + 1) * n`` encodings and the one under way, however many
    tiles the others have. Tiles that are in the cache take no turn, and equal tiles are encoded once, whether they are
    of one request or of several that wait at the same time. Rows are the same, bit for bit, as if every tile were
    encoded alone.

    Args:
        runner: The compiled vision encoder; only the worker thread touches it.
        cache_bytes: Memory for rows of tiles seen before; 0 keeps none.
    """

    def __init__(self, runner: Runner, *, cache_bytes: int = 0) -> None:
        self._runner = runner
        self._cache = RowCache(cache_bytes)
        self._wake = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._closing = False
        self._under_way: bytes | None = None
        self._abandoned = False
        self._worker = threading.Thread(target=self._work, name="nvlm-vision", daemon=True)
        self._worker.start()

    @property
    def waiting(self) -> int:
        """Requests that wait for a tile."""
        return len(self._jobs)

    @property
    def busy(self) -> bool:
        """Whether there is something to do, the end of a tile that nobody wants any more included."""
        return bool(self._jobs) or self._under_way is not None

    def status(self) -> VisionCacheStatus:
        """Of the cache: what it did, and what it holds."""
        return self._cache.status()

    def encode(self, tiles: Tiles) -> Rows:
        """Encode tiles and wait for their rows; arguments and errors are those of `submit`.

        Returns:
            float32 [n, tokens_per_tile, hidden], the caller's own.
        """
        future: Future[Rows] = Future()

        def done(outcome: Rows | Exception) -> None:
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        self.submit(tiles, done)
        return future.result()

    def submit(self, tiles: Tiles, done: Done, found: Callable[[int], None] | None = None) -> GiveUp:
        """Queue the tiles of one request.

        Args:
            tiles: uint8 [n, tile_size, tile_size, 3], RGB; n may be 0. They may be reused after the call.
            done: Called once, from this call or from the worker, with float32 [n, tokens_per_tile, hidden], the
                caller's own, or with what encoding one of the tiles raised.
            found: Called before that, from this call, with the number of tiles that need not be encoded for it.

        Returns:
            Gives the request up, from any thread: its tiles are not encoded, that under way neither, unless others wait
            for them. Returns whether it was in time: then `done` is not called any more.

        Raises:
            RequestError: the tiles are of another type or shape; nothing was queued.
            ServerError: the encoder is closed.
        """
        self._runner.check(tiles)
        job = _Job([tile_key(tile) for tile in tiles], done)
        with self._wake:
            if self._closing:
                raise ServerError("the vision encoder is closed")
            for place, key in enumerate(job.keys):
                if key in job.rows or key in job.waiting:
                    continue
                rows = self._cache.get(key)
                if rows is not None:
                    job.take(key, rows)
                else:
                    job.waiting[key] = tiles[place : place + 1].copy()
            self._cache.count(hits=len(job.keys) - len(job.waiting))
            if found is not None:
                found(len(job.keys) - len(job.waiting))
            if job.waiting:
                self._jobs.append(job)
                self._wake.notify()
                return lambda: self._give_up(job)
        done(self._table(job))
        return lambda: False

    def close(self) -> None:
        """End the worker, and with an error the requests that wait; may be called twice."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._worker.join()

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._jobs and not self._closing:
                    self._wake.wait()
                if self._closing:
                    break
                key, tile = next(iter(self._jobs[0].waiting.items()))
                self._under_way, self._abandoned = key, False
            try:
                rows = self._runner.encode(tile, lambda: self._abandoned)[0]
            except Exception as error:  # whatever the runtime raises must not end the worker
                if self._abandoned:  # who has come to wait for it since gets another turn
                    with self._wake:
                        self._under_way = None
                    continue
                log.exception("encoding a tile failed")
                self._end(self._turn(key, None), error)
            else:
                self._end(self._turn(key, rows))
        with self._wake:  # whoever is taken out here is not given up any more
            left, self._jobs = self._jobs, deque()
        self._end(left, ServerError("the vision encoder is closed"))

    def _give_up(self, job: _Job) -> bool:
        with self._wake:
            if job not in self._jobs:
                return False
            self._jobs.remove(job)
            if self._under_way in job.waiting and not any(self._under_way in other.waiting for other in self._jobs):
                self._abandoned = True
                self._runner.cancel()
        return True

    def _turn(self, key: bytes, rows: Rows | None) -> list[_Job]:
        """Give a tile's rows (None: there will be none) to everybody who waits for them, and the turn to the next.

        Returns:
            The requests that wait for nothing any more.
        """
        with self._wake:
            concerned = [job for job in self._jobs if key in job.waiting]
            self._cache.count(hits=max(0, len(concerned) - 1), misses=1)
            self._under_way = None
            if rows is not None:
                self._cache.put(key, rows)
                for job in concerned:
                    job.take(key, rows)
            ended = [job for job in concerned if rows is None or not job.waiting]
            self._jobs.rotate(-1)
            self._jobs = deque(job for job in self._jobs if job not in ended)
        return ended

    def _end(self, jobs: Iterable[_Job], fault: Exception | None = None) -> None:
        for job in jobs:
            try:
                outcome = fault or self._table(job)
            except Exception as error:  # there may be no memory for it; the request has to end nevertheless
                outcome = error
            try:
                job.done(outcome)
            except Exception:  # what is done with rows is the caller's code
                log.exception("handing over the rows of a request failed")

    def _table(self, job: _Job) -> Rows:
        """The rows of a request that has them all."""
        table = np.empty((len(job.keys), self._runner.tokens_per_tile, self._runner.hidden_size), dtype=np.float32)
        for place, key in enumerate(job.keys):
            table[place] = job.rows[key]
        return table

"""A batch over a cluster: the client of `nvlm-trt batch`, mapped over a Ray Data dataset (extra ray).

    dataset = ray.data.read_json("requests/", lines=True)
    answer_dataset(dataset, "server:8001", actors=4, folder=Path("/data")).write_parquet("answers/")

Ray Data streams: it reads, asks and writes at the same time, and reads no further ahead than its memory allows. A
server is never sent more than actors x concurrency requests at a time.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from nvlm_trt.client.aio import AsyncNvlmClient
from nvlm_trt.client.batch_ask import Asker, Record
from nvlm_trt.client.batch_request import BatchRequest, parse_request
from nvlm_trt.client.parallel import for_each
from nvlm_trt.client.retry import Backoff
from nvlm_trt.errors import UserError
from nvlm_trt.jsonl import FieldError

if TYPE_CHECKING:
    from ray.data import Dataset

SCHEMA: Final = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("num_input_tokens", pa.int64()),
        ("num_output_tokens", pa.int64()),
        ("seconds", pa.float64()),
        ("error", pa.struct([("message", pa.string()), ("kind", pa.string()), ("attempts", pa.int64())])),
    ]
)
"""Of the answers, whatever a block of them holds; a row has a text or an error."""

ROWS_A_SLOT: Final = 16
"""Rows that an actor is given at a time, for each request that it may have under way: many, because places are idle
while the last ones of a table are waited for."""

TASKS_AN_ACTOR: Final = 2
"""Tables at an actor: one that it asks, one that is there when that is done."""

CPUS_AN_ACTOR: Final = 0.25
"""An actor waits most of the time."""


def answer_dataset(
    dataset: Dataset,
    url: str,
    *,
    actors: int = 1,
    concurrency: int = 8,
    backoff: Backoff | None = None,
    idle_timeout: float = 600.0,
    folder: Path = Path("/"),
) -> Dataset:
    """Ask a server every row of a dataset.

    Args:
        dataset: Rows with the fields of a line of `nvlm-trt batch`; `id` is required, null is nothing given, and
            `images` holds paths, which every machine of the cluster must see, or files' bytes.
        url: ``host:port`` of the server's gRPC.
        actors: Clients, each in a process of its own somewhere on the cluster.
        concurrency: Requests that each has under way at a time.
        backoff: When a request is sent again.
        idle_timeout: Seconds of a server's silence on a request that end an attempt.
        folder: Under which relative image files lie.

    Returns:
        Rows of `SCHEMA`, not in the order of the requests. Like every dataset it is lazy; running it raises what Ray
        makes of a `UserError` for a row without id, and of an `UnavailableError` when the server is gone.
    """
    from ray.data import ActorPoolStrategy

    return dataset.map_batches(
        AskTables,
        fn_constructor_kwargs={
            "url": url,
            "concurrency": concurrency,
            "backoff": backoff or Backoff(),
            "idle_timeout": idle_timeout,
            "folder": folder,
        },
        batch_size=ROWS_A_SLOT * concurrency,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=TASKS_AN_ACTOR),
        num_cpus=CPUS_AN_ACTOR,
    )


class AskTables:
    """From a table of requests to a table of answers; what an actor runs.

    Args:
        url: ``host:port`` of the server's gRPC.
        concurrency: Requests under way at a time.
        backoff: When a request is sent again.
        idle_timeout: Seconds of a server's silence on a request that end an attempt.
        folder: Under which relative image files lie.
    """

    def __init__(self, url: str, concurrency: int, backoff: Backoff, idle_timeout: float, folder: Path) -> None:
        self._url, self._concurrency, self._backoff = url, concurrency, backoff
        self._idle_timeout, self._folder = idle_timeout, folder

    def __call__(self, table: pa.Table) -> pa.Table:
        """Ask the rows of a table.

        Raises:
            UserError: a row has no id.
            UnavailableError: the server is gone.
        """
        return pa.Table.from_pylist(asyncio.run(self._ask(table.to_pylist())), schema=SCHEMA)

    async def _ask(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = []
        async with AsyncNvlmClient(self._url, idle_timeout=self._idle_timeout) as client:
            asker = Asker(client, self._backoff)

            async def ask(row: dict[str, Any]) -> None:
                read = self._read(row)
                record = read if isinstance(read, Record) else await asker.ask(read)
                answers.append(record.as_json() | {"id": str(record.id)})

            await for_each(rows, ask, self._concurrency)
        return answers

    def _read(self, row: dict[str, Any]) -> BatchRequest | Record:
        """The request of a row, or what is wrong with it."""
        given = {name: value for name, value in row.items() if value is not None}
        if "id" not in given:
            raise UserError("a row has no id", expected="an id in every row: rows of a dataset have no numbers")
        try:
            return parse_request(given, 0, self._folder)
        except FieldError as error:
            return Record(given["id"], seconds=0.0, attempts=0, error=error)

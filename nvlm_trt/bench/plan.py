"""What a benchmark will do, with everything checked that can be checked before a clock runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nvlm_trt.bench.peers.choose import choose_peers
from nvlm_trt.bench.peers.engines import PeerName
from nvlm_trt.bench.peers.tool import TRANSPORTS, ToolName, found
from nvlm_trt.bench.record import Device
from nvlm_trt.bench.report import Task
from nvlm_trt.bench.scenarios import Bounds
from nvlm_trt.bench.subjects import (
    Dtype,
    OpenedEngine,
    PeerSubject,
    ReferenceSubject,
    ServerSubject,
    Subject,
    Transport,
    choose_subjects,
)
from nvlm_trt.bench.workload import Question, Workload
from nvlm_trt.engine_files import TOKENIZER
from nvlm_trt.errors import ImageRejected, UserError
from nvlm_trt.eval.tasks import read_tasks
from nvlm_trt.model.image import read_image
from nvlm_trt.model.prompt import build_prompt
from nvlm_trt.model.tiling import plan_grid
from nvlm_trt.model.tokenizer import NvlmTokenizer

DEFAULT_BOUNDS = Bounds(
    tile_size=448,
    tokens_per_tile=256,
    thumbnail=True,
    max_tiles=6,
    prompt_tokens=8192,
    answer_tokens=1024,
    total_tokens=9216,
    streams=32,
)
"""Of the release and of the defaults of a recipe, where only a server is known."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for.

    Attributes:
        engines: Engine directories.
        grpc_url: ``host:port`` of the gRPC of a server that runs already.
        http_url: ``host:port`` of its HTTP.
        transports: How engine directories are asked.
        baselines: Dtypes of the torch reference.
        checkpoint: What it reads; None for what the first engine was built from.
        workload: What is asked.
        rounds: How often everybody is measured.
        task: A JSONL file of questions with answers; None measures no accuracy.
        task_limit: Questions at most.
        tools: Load tools of others.
        served: Names of the engine directories that servers are started for; None for all.
        peers: Engines of others.
        peers_dir: Where their environments lie.
    """

    engines: tuple[Path, ...]
    grpc_url: str | None
    http_url: str | None
    transports: tuple[Transport, ...]
    baselines: tuple[Dtype, ...]
    checkpoint: Path | None
    workload: Workload
    rounds: int
    task: Path | None
    task_limit: int | None
    tools: tuple[ToolName, ...]
    served: frozenset[str] | None = None
    peers: tuple[PeerName, ...] = ()
    peers_dir: Path = Path(".peers")


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done.

    Attributes:
        request: What was asked for.
        subjects: Whoever is measured, the baseline first.
        engines: Engine directories by path.
        bounds: What all engines take.
        prompt_tokens: Tokens of the longest prompt; None where only a server is known.
        task: What accuracy is measured on.
        device: Where the machine's ceilings are measured.
        remarks: What a reader of the report should know.
    """

    request: Request
    subjects: tuple[Subject, ...]
    engines: dict[Path, OpenedEngine]
    bounds: Bounds
    prompt_tokens: int | None
    task: Task | None
    device: Device
    remarks: tuple[str, ...]

    def tools_of(self, subject: Subject) -> tuple[ToolName, ...]:
        """Tools that are run beside a subject: those that use its transport."""
        return tuple(tool for tool in self.request.tools if TRANSPORTS[tool] == subject.transport)

    def bounds_of(self, subject: Subject) -> Bounds:
        """What a subject can be asked: of the reference, one request at a time."""
        streams = 1 if isinstance(subject, ReferenceSubject) else self.bounds.streams
        return self.bounds.model_copy(update={"streams": streams, "served": subject.transport != "local"})


def make_plan(request: Request) -> Plan:
    """Check everything.

    Raises:
        UserError: something is not there, or does not fit an engine; nothing was measured.
    """
    engines = [OpenedEngine(path) for path in request.engines]
    subjects = choose_subjects(
        engines,
        transports=request.transports,
        served=request.served,
        baselines=request.baselines,
        checkpoint=request.checkpoint,
        grpc_url=request.grpc_url,
        http_url=request.http_url,
    )
    subjects = (*subjects, *choose_peers(request.peers, request.peers_dir, engines, request.checkpoint))
    bounds = _bounds(engines)
    _check_tools(request, subjects)
    devices = {engine.device for engine in engines} or {"cpu"}
    if len(devices) > 1:
        raise UserError("engines of two targets are not measured in one run", seen="cpu and gpu")
    return Plan(
        request,
        subjects,
        {engine.directory: engine for engine in engines},
        bounds,
        _prompt_tokens(engines, request.workload, bounds.tile_size),
        None if request.task is None else _task(request.task, request.task_limit),
        devices.pop(),
        tuple(_remarks(engines, subjects)),
    )


def _bounds(engines: Sequence[OpenedEngine]) -> Bounds:
    """What all engines take; they have to be of one model's shape."""
    sizes = {engine.config.tile_size for engine in engines}
    if len(sizes) > 1:
        raise UserError("the engines are of different models", seen=f"tiles of {sorted(sizes)} pixels")
    if not engines:
        return DEFAULT_BOUNDS
    recipes, config = [engine.recipe for engine in engines], engines[0].config
    positions = config.decoder.max_position_embeddings
    return Bounds(
        tile_size=config.tile_size,
        tokens_per_tile=config.tokens_per_tile,
        thumbnail=config.use_thumbnail,
        max_tiles=min(recipe.max_tiles for recipe in recipes),
        prompt_tokens=min(recipe.max_input_len for recipe in recipes),
        answer_tokens=min(recipe.max_output_len for recipe in recipes),
        total_tokens=min(recipe.max_seq_len(positions) for recipe in recipes),
        streams=min(recipe.max_batch_size for recipe in recipes),
    )


def _check_tools(request: Request, subjects: Sequence[Subject]) -> None:
    tools = request.tools
    if tools and not request.workload.levels:
        raise UserError("load tools of others are measured beside our load", fix="add --scenario load")
    for tool in tools:
        if found(tool) is None:
            raise UserError(f"{tool} is not on PATH", fix="docs/benchmarks.md says where it comes from")
        beside = [subject for subject in subjects if subject.transport == TRANSPORTS[tool]]
        if not beside:
            raise UserError(
                f"{tool} runs against a server over {TRANSPORTS[tool]}", fix=f"add --transport {TRANSPORTS[tool]}"
            )
        if tool == "aiperf" and any(isinstance(subject, ServerSubject) for subject in beside):
            raise UserError("aiperf needs the tokenizer of the engine", fix="give the engine directory, not its URL")


def _prompt_tokens(engines: Sequence[OpenedEngine], workload: Workload, tile_size: int) -> int | None:
    """Tokens of the longest prompt.

    Raises:
        UserError: it does not fit an engine, or its pictures would be cut otherwise than asked.
    """
    questions = [workload.question(number, tile_size) for number in range(max(1, len(workload.images)))]
    longest = 0
    for engine in engines:
        recipe = engine.recipe
        if workload.max_tokens > recipe.max_output_len:
            raise UserError(
                f"answers are longer than {engine.name} allows",
                seen=workload.max_tokens,
                expected=f"at most {recipe.max_output_len}",
                fix="give fewer --max-tokens",
            )
        room = recipe.max_seq_len(engine.config.decoder.max_position_embeddings) - workload.max_tokens
        for tokens in _lengths(engine, questions, workload):
            if tokens > min(room, recipe.max_input_len):
                raise UserError(
                    f"the prompt does not fit {engine.name}",
                    seen=f"{tokens} tokens and an answer of {workload.max_tokens}",
                    expected=f"at most {min(room, recipe.max_input_len)} tokens of prompt",
                    fix="ask with fewer tiles (--columns, --rows), without images (--text-only), or for fewer tokens",
                )
            longest = max(longest, tokens)
    return longest or None


def _lengths(engine: OpenedEngine, questions: Sequence[Question], workload: Workload) -> Iterator[int]:
    """Tokens of each prompt.

    Raises:
        ImageRejected: the engine takes no such image.
        UserError: the engine cuts a made picture into another grid than the one asked for.
    """
    recipe, config = engine.recipe, engine.config
    tokenizer = NvlmTokenizer.load(engine.directory / TOKENIZER)
    limits = recipe.image_limits.limits()
    for number, question in enumerate(questions):
        tiles = []
        for data in question.images:
            try:
                image = read_image(data, limits, exif_orientation=recipe.exif_orientation)
            except ImageRejected as error:
                raise (error.named(workload.images[number]) if workload.images else error) from None
            grid = plan_grid(
                image.width,
                image.height,
                max_tiles=recipe.max_tiles,
                tile_size=config.tile_size,
                use_thumbnail=config.use_thumbnail,
            )
            if not workload.images and (grid.columns, grid.rows) != (workload.columns, workload.rows):
                raise UserError(
                    f"{engine.name} cuts made pictures of this size into another grid",
                    seen=f"--columns {workload.columns} --rows {workload.rows}, cut {grid.columns} x {grid.rows}",
                    expected=f"one that stays as it is, of at most {recipe.max_tiles} tiles (max_tiles of its recipe)",
                    fix="give other --columns and --rows, or pictures of yours with --image",
                )
            tiles.append(grid.num_tiles)
        yield len(build_prompt(tokenizer, config.tokens_per_tile, question.text, tiles=tiles).input_ids)


def _task(path: Path, limit: int | None) -> Task:
    samples = read_tasks(path)[:limit]
    return Task(name=path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), samples=len(samples))


def _remarks(engines: Sequence[OpenedEngine], subjects: Sequence[Subject]) -> Iterator[str]:
    if len({engine.checkpoint_fingerprint for engine in engines}) > 1:
        yield "the engines were built from different checkpoints: accuracy and speed are not of one model"
    if any(isinstance(subject, ReferenceSubject) for subject in subjects):
        yield "the torch reference answers one request at a time; further ones wait, and their wait counts"
    if any(isinstance(subject, PeerSubject) for subject in subjects):
        yield (
            "peers of text get the token ids that ours make before the clock starts; their engines' own choices of "
            "batches, caches and threads hold unless the settings say otherwise"
        )
    if any(subject.transport != "local" for subject in subjects):
        yield (
            "through a server, tokens that follow each other faster than it passes text on arrive together: "
            "time to first token then is late, inter-token latency short, their sum right"
        )

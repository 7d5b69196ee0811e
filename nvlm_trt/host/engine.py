"""What is served: an engine directory, and how its target is run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nvlm_trt.engine_files import DECODER_ENGINE, RECIPE, REPOSITORY, VISION_PLAN
from nvlm_trt.errors import EngineError, listed
from nvlm_trt.gateway.settings import Limits
from nvlm_trt.host.command import ServerOptions
from nvlm_trt.host.nodes import Nodes
from nvlm_trt.host.ports import Ports
from nvlm_trt.pipeline.manifest import PACKAGE_STAGE, Manifest, load_manifest
from nvlm_trt.recipe import BuildRecipe, load_recipe
from nvlm_trt.serving.config_gpu import LOAD_ORDER
from nvlm_trt.serving.package import outdated_models

ADDED_ROOM: Final = 64 << 10
"""Bytes beyond the gateway's largest body: it adds ids to one, and the server is tested with bodies of its own."""

START_TIMEOUT: Final = {"cpu": 180.0, "gpu": 3600.0}
"""Seconds that a server has to become ready: engines of many gigabytes may come over a network file system."""

NICENESS: Final = {"cpu": 7, "gpu": 0}
"""Of tritonserver and the models. On the cpu target these have as many threads as there are cores, and the gateway,
which works in short turns, waited behind them for up to a second, and a refusal with it (docs/reliability.md)."""


@dataclass(frozen=True, slots=True)
class ServedEngine:
    """An engine directory that can be served.

    Attributes:
        directory: Its absolute path.
        recipe: What it was built with.
    """

    directory: Path
    recipe: BuildRecipe

    @classmethod
    def open(cls, directory: Path) -> ServedEngine:
        """Read an engine directory that has been packaged.

        Raises:
            EngineError: it has not been packaged, or a later build of it did not come to its end.
            RecipeError: its recipe cannot be read.
        """
        directory = directory.resolve()
        if not (directory / REPOSITORY).is_dir():
            raise EngineError("there is no packaged engine", seen=directory, fix="run nvlm-trt build first")
        _check_build(load_manifest(directory))
        return cls(directory, load_recipe(directory / RECIPE))

    @property
    def world_size(self) -> int:
        """Ranks of the decoder; the cpu target joins them in one process."""
        return self.recipe.tp * self.recipe.pp if self.recipe.target == "gpu" else 1

    def options(
        self,
        host: str,
        ports: Ports,
        nodes: Nodes,
        *,
        start_timeout: float | None,
        hang_timeout: float,
        grace: float,
        max_growth: int | None = None,
        max_body: int | None = None,
    ) -> ServerOptions:
        """How its server runs.

        Args:
            host: Address to listen on.
            ports: Its ports.
            nodes: Where ranks run.
            start_timeout: Seconds to become ready; None for the target's own.
            hang_timeout: Seconds without a sign of life that mean hung.
            grace: Seconds for requests under way when it stops.
            max_growth: Bytes by which a process may grow; None for three quarters of the memory at hand.
            max_body: Bytes of the largest body that the gateway lets through; None for what the recipe asks for.
        """
        return ServerOptions(
            repository=self.directory / REPOSITORY,
            host=host,
            ports=ports,
            max_body_bytes=Limits.of(self.recipe).max_body if max_body is None else max_body + ADDED_ROOM,
            world_size=self.world_size,
            nodes=nodes,
            gpus_per_node=self.recipe.gpus_per_node,
            load_order=LOAD_ORDER if self.recipe.target == "gpu" else (),
            start_timeout=START_TIMEOUT[self.recipe.target] if start_timeout is None else start_timeout,
            hang_timeout=hang_timeout,
            grace=grace,
            max_growth=max_growth,
            niceness=NICENESS[self.recipe.target],
        )

    def check_repository(self) -> None:
        """Look whether the model repository is what this version of nvlm-trt packages.

        Raises:
            EngineError: naming the models that it configures otherwise, and the command that packages them again.
            CheckpointError: the directory's config.json is missing or damaged.
        """
        models = outdated_models(self.directory, self.directory / REPOSITORY, self.recipe)
        if models:
            packaged = load_manifest(self.directory).stages.get(PACKAGE_STAGE)
            command = packaged.command if packaged else f"nvlm-trt build RECIPE --output {self.directory}"
            raise EngineError(
                "the engine was packaged by another version of nvlm-trt, or its recipe was changed",
                seen=f"other configurations of {', '.join(models)}",
                expected="those of this version",
                fix=f"package it again: {command}",
            )

    def check_engines(self) -> None:
        """Look whether the engines of the gpu target are all there; those of the cpu target say so themselves.

        Raises:
            EngineError: naming what is missing, or engines for another number of ranks.
        """
        if self.recipe.target == "cpu":
            return
        engines = [f"{DECODER_ENGINE}/rank{rank}.engine" for rank in range(self.world_size)]
        needed = [VISION_PLAN, f"{DECODER_ENGINE}/config.json", *engines]
        missing = [name for name in needed if not (self.directory / name).is_file()]
        if missing:
            raise EngineError(f"the engine directory is not complete:{listed(missing)}", fix="run nvlm-trt build again")
        built = _world_size(self.directory / DECODER_ENGINE / "config.json")
        if built != self.world_size:
            raise EngineError(
                "the decoder's engine is for another number of ranks",
                seen=built,
                expected=f"tp {self.recipe.tp} * pp {self.recipe.pp}",
                fix="run nvlm-trt build again",
            )


def _check_build(manifest: Manifest) -> None:
    """Refuse engines that were built again after they were packaged: no gate may have judged them, or one refused them.

    Only what a build packaged is asked for it: who writes a model repository by hand (scripts/bench.sh) knows why.

    Raises:
        EngineError: naming the stage, and the command that goes on from there.
    """
    packaged = manifest.stages.get(PACKAGE_STAGE)
    if packaged is None:
        return
    told = {"running": "is running, or was stopped", "failed": "failed"}
    faults = [f"stage {name} {told[each.state]}" for name, each in manifest.stages.items() if each.state in told]
    for name, digest in packaged.basis.get("inputs", {}).items():
        record = manifest.done(name)
        if record is None or record.outputs_digest != digest:
            faults.append(f"stage {name} was run again after it was packaged")
    if faults:
        raise EngineError(f"the engine directory is not complete: {faults[0]}", fix=f"run {packaged.command}")


def _world_size(config: Path) -> object:
    """Ranks that TensorRT-LLM's engine was built for (pretrained_config.mapping of its config.json)."""
    try:
        return json.loads(config.read_text(encoding="utf-8"))["pretrained_config"]["mapping"]["world_size"]
    except (ValueError, KeyError, TypeError):
        raise EngineError("the decoder's config.json is not TensorRT-LLM's", fix="run nvlm-trt build again") from None

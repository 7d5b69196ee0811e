"""What a plan is about: a recipe's engines on GPUs of one model, and what is assumed of their memory."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from nvlm_trt.datasheets.datasheet import Datasheet
from nvlm_trt.decoder.precision import Precision
from nvlm_trt.decoder.trtllm_build_command import max_num_tokens
from nvlm_trt.decoder.trtllm_build_command import refusals as build_refusals
from nvlm_trt.decoder.trtllm_layout import Rank
from nvlm_trt.errors import RecipeError
from nvlm_trt.model.config import DecoderConfig, NvlmConfig
from nvlm_trt.pipeline.sources import Sources
from nvlm_trt.plan.shapes import planned_shapes
from nvlm_trt.plan.sizes import prompt_table_bytes
from nvlm_trt.recipe import BuildRecipe


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What is assumed of a GPU's memory.

    Attributes:
        memory_share: Of the memory as sold, used at most: the rest covers what drivers take and what fragments.
        reserve_bytes: For the CUDA context, NCCL, workspaces of kernels and the server, on every GPU.
    """

    memory_share: float = 0.9
    reserve_bytes: int = 3_500_000_000


@dataclass(frozen=True, slots=True)
class Deployment:
    """One set of engines: a recipe for the gpu target, the model's shapes, and the GPU model.

    Attributes:
        sources: The recipe and the headers of its checkpoint.
        gpu: The GPU model; a rank has one each.
        assumptions: Of the GPU's memory.
    """

    sources: Sources
    gpu: Datasheet
    assumptions: Assumptions = Assumptions()

    @classmethod
    def of(cls, recipe: BuildRecipe, checkpoint: Path | None, gpu: Datasheet, assumptions: Assumptions) -> Deployment:
        """The deployment of a recipe; of a checkpoint directory only config.json is read, None is the release.

        Raises:
            RecipeError: the recipe is not for the gpu target.
            CheckpointError: there is no config.json, or it isn't NVLM-D's.
        """
        if recipe.target != "gpu":
            raise RecipeError(
                "only recipes of the gpu target have a plan of GPUs", seen=f"{recipe.name}: target {recipe.target}"
            )
        return cls(Sources(recipe, planned_shapes(checkpoint), None), gpu, assumptions)

    def changed(self, **fields: object) -> Deployment:
        """The same with other fields of the recipe."""
        recipe = self.recipe.model_copy(update=fields)
        return dataclasses.replace(self, sources=dataclasses.replace(self.sources, recipe=recipe))

    @property
    def recipe(self) -> BuildRecipe:
        """The recipe."""
        return self.sources.recipe

    @property
    def config(self) -> NvlmConfig:
        """The model's configuration."""
        return self.sources.checkpoint.config

    @property
    def precision(self) -> Precision:
        """The decoder's precision."""
        return self.sources.precision

    @property
    def decoder(self) -> DecoderConfig:
        """The decoder's shapes as stored: its MLP is padded where the precision asks for it."""
        return self.precision.padded(self.config.decoder, self.recipe.tp)

    @property
    def refusals(self) -> tuple[str, ...]:
        """Why the build would refuse the recipe, or the GPU could not run it: one reason each."""
        own = build_refusals(self.recipe, self.config.decoder, self.precision)
        return (*self.sources.refusals(self.gpu.name, self.gpu.compute_capability), *own)

    @property
    def gpus(self) -> int:
        """GPUs of one set of engines."""
        return self.recipe.tp * self.recipe.pp

    @property
    def ranks(self) -> tuple[Rank, ...]:
        """The decoder's ranks, in the order of their engines."""
        return tuple(Rank(self.recipe.tp, self.recipe.pp, index) for index in range(self.gpus))

    @property
    def placed_ranks(self) -> tuple[Rank, ...]:
        """The rank on each GPU, node after node.

        MPI's processes fill the nodes in order, and the executor deals the stages out to them from the last to the
        first, so that process 0, which takes the requests in, has the last (TensorRT-LLM, executorImpl.cpp,
        initializeWorkers). A rank computes on the GPU of its index modulo `gpus_per_node` (worldConfig.h, getDevice):
        on one node rank i has GPU i, on several the first node has the last stages.
        """
        tp, node = self.recipe.tp, self.recipe.gpus_per_node
        processes = [rank for start in reversed(range(0, self.gpus, tp)) for rank in self.ranks[start : start + tp]]
        nodes = [processes[start : start + node] for start in range(0, self.gpus, node)]
        return tuple(rank for ranks in nodes for rank in sorted(ranks, key=lambda rank: rank.index % node))

    @property
    def reduces_over_network(self) -> bool:
        """Whether ranks that share a layer are on several nodes, so that their all-reduces cross the network."""
        tp, node = self.recipe.tp, self.recipe.gpus_per_node
        return any(first // node != (first + tp - 1) // node for first in range(0, self.gpus, tp))

    @property
    def stage_ranks(self) -> tuple[Rank, ...]:
        """The first rank of every pipeline stage; the others of its stage hold as much."""
        return self.ranks[:: self.recipe.tp]

    @property
    def vision_gpus(self) -> int:
        """GPUs with a vision engine, from GPU 0 on: the first node's at most, as Triton places them."""
        return self.recipe.vision_gpus

    @property
    def tiles_per_image(self) -> int:
        """Tiles of one image at most, its thumbnail included."""
        return self.sources.tiles_per_image

    @property
    def vision_batch(self) -> int:
        """Tiles of one batch of the vision engine at most."""
        return self.recipe.vision_max_tiles(self.sources.tiles_per_request)

    @property
    def max_num_tokens(self) -> int:
        """Tokens of one decoder step at most, as trtllm-build is told."""
        return max_num_tokens(self.recipe, self.sources.max_seq_len)

    def prompt_table_bytes(self, rows: int) -> int:
        """Bytes of so many rows of a prompt table."""
        return prompt_table_bytes(self.decoder, self.precision, rows)

    @property
    def prompt_buffer_bytes(self) -> int:
        """Bytes of the buffers in which every rank, of whatever stage, holds the prompt tables of whole batches.

        ``pp x max_batch_size x rows of a request at most``: one buffer for each batch that is under way in the pipeline
        (TensorRT-LLM, batch_manager: promptTuningBuffers.cpp, runtimeBuffers.cpp, and mNumMicroBatches of
        trtGptModelInflightBatching.cpp). They are there before the KV cache takes its share of what is free.
        """
        recipe = self.recipe
        return self.prompt_table_bytes(recipe.pp * recipe.max_batch_size * self.sources.max_table_rows)

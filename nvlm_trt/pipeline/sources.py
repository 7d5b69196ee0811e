"""What a build starts from: the recipe as it will be built and the checkpoint that it names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nvlm_trt.decoder.precision import Precision, precision_of
from nvlm_trt.engine_files import SYNTHETIC_CHECKPOINT
from nvlm_trt.environment.capability import refusals
from nvlm_trt.errors import RecipeError
from nvlm_trt.miniature import shipped
from nvlm_trt.model.checkpoint import ITEM_BYTES, SINGLE_NAME, Checkpoint, TensorInfo
from nvlm_trt.model.release import ReleaseSpec
from nvlm_trt.model.synthetic import SIZES
from nvlm_trt.model.tensors import expected_tensors
from nvlm_trt.recipe import SYNTHETIC_PREFIX, BuildRecipe, load_recipe

RECIPE_FOLDER = Path("build") / "recipes"


@dataclass(frozen=True, slots=True)
class Sources:
    """What a build starts from.

    Attributes:
        recipe: The recipe; its `checkpoint` is the one that is used. Paths of a checkpoint and a task are absolute.
        checkpoint: The checkpoint's headers. Those of a synthetic one that is not written yet are worked out.
        synthetic: How to make the checkpoint, or None where it is given.
    """

    recipe: BuildRecipe
    checkpoint: Checkpoint
    synthetic: ReleaseSpec | None

    @property
    def max_seq_len(self) -> int:
        """Tokens of prompt and answer together."""
        return self.recipe.max_seq_len(self.checkpoint.config.decoder.max_position_embeddings)

    @property
    def tiles_per_image(self) -> int:
        """Tiles of one image at most, thumbnail included."""
        return self.recipe.tiles_per_image(use_thumbnail=self.checkpoint.config.use_thumbnail)

    @property
    def tiles_per_request(self) -> int:
        """Tiles of one request at most."""
        return self.recipe.tiles_per_request(use_thumbnail=self.checkpoint.config.use_thumbnail)

    @property
    def max_table_rows(self) -> int:
        """Visual tokens of one request at most."""
        return min(self.tiles_per_request * self.checkpoint.config.tokens_per_tile, self.max_seq_len)

    @property
    def precision(self) -> Precision:
        """How the decoder's checkpoint is stored for the gpu target.

        Raises:
            RecipeError: the recipe's decoder precision is not one of the gpu target.
        """
        return precision_of(self.recipe)

    def refusals(self, gpu: str, compute_capability: int) -> tuple[str, ...]:
        """Why a GPU of that name and compute capability (90 for 9.0) cannot run the recipe's precisions."""
        cache = self.precision.quantization.kv_cache_quant_algo
        return refusals(
            gpu,
            compute_capability,
            decoder=self.recipe.decoder_precision,
            kv_cache=None if cache is None else cache.lower(),
            vision=self.recipe.vision_precision,
        )

    def remarks(self) -> list[str]:
        """Where the engine will differ from the letter of the recipe, one sentence each."""
        remarks = []
        asked = self.recipe.max_input_len + self.recipe.max_output_len
        if asked != self.max_seq_len:
            remarks.append(
                f"max_input_len + max_output_len is {asked}, but the checkpoint has {self.max_seq_len} positions: "
                f"the engine takes {self.max_seq_len} tokens"
            )
        return remarks


def find_recipe(name: str) -> Path:
    """The file of a recipe given as a path or as the name of one in build/recipes."""
    path = Path(name)
    named = RECIPE_FOLDER / f"{name}.yaml"
    return named if not path.exists() and named.is_file() else path


def open_sources(recipe_path: Path, checkpoint: Path | None, engine: Path) -> Sources:
    """Read the recipe and the headers of its checkpoint, and check both; nothing is written.

    Args:
        recipe_path: The recipe's file.
        checkpoint: Takes the place of the recipe's checkpoint.
        engine: The engine directory, in which a synthetic checkpoint lies.

    Raises:
        RecipeError: the recipe is at fault, names no checkpoint, or one that does not ship.
        CheckpointError: with every fault of the checkpoint.
    """
    recipe = load_recipe(recipe_path)
    named = recipe.checkpoint if checkpoint is None else str(checkpoint)
    if named is None:
        raise RecipeError("the recipe names no checkpoint", seen=recipe_path.name, fix="give one with --checkpoint")
    named, task, samples = _absolute(named), recipe.gates.task, recipe.calibration.samples
    gates = recipe.gates.model_copy(update={"task": task and _absolute(task)})
    calibration = recipe.calibration.model_copy(update={"samples": samples and _absolute(samples)})
    recipe = recipe.model_copy(update={"checkpoint": named, "gates": gates, "calibration": calibration})
    if named.startswith(SYNTHETIC_PREFIX):
        spec = _synthetic_spec(named)
        return Sources(recipe, planned_checkpoint(engine / SYNTHETIC_CHECKPOINT, spec), spec)
    return Sources(recipe, Checkpoint.open(shipped.resolve(named, shipped.FOLDER)), None)


def _absolute(named: str) -> str:
    """What a field of a recipe names, as it reads in every working directory; a path is relative to the present one."""
    return named if named.startswith((SYNTHETIC_PREFIX, shipped.SHIPPED_PREFIX)) else str(Path(named).absolute())


def planned_checkpoint(directory: Path, spec: ReleaseSpec) -> Checkpoint:
    """The headers of a synthetic checkpoint before it is written: enough to plan with, not to read values."""
    file = directory / SINGLE_NAME
    tensors = {}
    for name, shape in expected_tensors(spec.config, spec.dummy_heads).items():
        count = 1
        for size in shape:
            count *= size
        tensors[name] = TensorInfo(name, shape, "F32", file, count * ITEM_BYTES["F32"])
    return Checkpoint(directory, spec.config, tensors)


def _synthetic_spec(checkpoint: str) -> ReleaseSpec:
    size = checkpoint.removeprefix(SYNTHETIC_PREFIX)
    if size not in SIZES:
        known = ", ".join(SYNTHETIC_PREFIX + name for name in SIZES)
        raise RecipeError("there is no such synthetic checkpoint", seen=checkpoint, expected=known)
    return SIZES[size]()

"""The stages that make or read the checkpoint as a whole."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import yaml

from nvlm_trt.engine_files import CONFIG, RECIPE, SYNTHETIC_CHECKPOINT, TOKENIZER
from nvlm_trt.errors import CheckpointError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.mini_tokenizer import MERGES_FILE
from nvlm_trt.model.tokenizer import FILES as TOKENIZER_FILES
from nvlm_trt.pipeline.manifest import SYNTH_STAGE
from nvlm_trt.pipeline.sources import Sources
from nvlm_trt.pipeline.stage import Estimate, Stage, StageContext
from nvlm_trt.pipeline.stages.common import BASE_BYTES, source_of


def synth(sources: Sources) -> Stage:
    """Makes the random checkpoint that the recipe asks for."""
    spec = sources.synthetic
    assert spec is not None

    def run(context: StageContext) -> None:
        from nvlm_trt.model.synthetic import write_synthetic

        write_synthetic(context.out / SYNTHETIC_CHECKPOINT, spec, progress=context.progress)

    return Stage(
        name=SYNTH_STAGE,
        inputs=(),
        outputs=(SYNTHETIC_CHECKPOINT,),
        parts={"spec": dataclasses.asdict(spec), "seed": 0},
        modules=("nvlm_trt.model.release", "nvlm_trt.model.synthetic"),
        tools=("torch",),
        run=run,
        estimated=lambda: Estimate(sources.checkpoint.nbytes, BASE_BYTES),
        files=(MERGES_FILE,),
    )


def inspect(sources: Sources) -> Stage:
    """Checks values that headers do not show, and keeps what the engine needs of the checkpoint besides weights."""
    recipe = sources.recipe.model_dump(mode="json")

    def run(context: StageContext) -> None:
        checkpoint = Checkpoint.open(sources.checkpoint.path)
        checkpoint.check_dummy_heads()
        (context.out / RECIPE).write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        shutil.copyfile(checkpoint.path / "config.json", context.out / CONFIG)
        _copy_tokenizer(checkpoint, context.out / TOKENIZER)
        for remark in sources.remarks():
            context.log(remark)

    return Stage(
        name="inspect",
        inputs=source_of(sources),
        outputs=(RECIPE, CONFIG, TOKENIZER),
        parts={"recipe": recipe},
        modules=("nvlm_trt.model.checkpoint", "nvlm_trt.model.tokenizer", "nvlm_trt.recipe"),
        tools=("PyYAML",),
        run=run,
        estimated=lambda: Estimate(16 << 20, BASE_BYTES),
        reads_checkpoint=True,
    )


def _copy_tokenizer(checkpoint: Checkpoint, target: Path) -> None:
    """Copy the tokenizer's files.

    Raises:
        CheckpointError: they are no tokenizer of Qwen2, or one with ids beyond the decoder's embedding.
    """
    from nvlm_trt.model.tokenizer import NvlmTokenizer

    largest, vocab_size = NvlmTokenizer.load(checkpoint.path).largest_id, checkpoint.config.decoder.vocab_size
    if largest >= vocab_size:
        raise CheckpointError(
            "the tokenizer has ids beyond the vocabulary, which would be read as rows of the prompt table",
            seen=f"id {largest}",
            expected=f"below llm_config.vocab_size, {vocab_size}",
            fix="put the tokenizer's files beside the weights that they belong to",
        )
    target.mkdir()
    for name in TOKENIZER_FILES:
        shutil.copyfile(checkpoint.path / name, target / name)

"""The stages of a build as values: what each reads, leaves, depends on and needs.

The libraries of a stage are imported when it runs: planning and a dry run need none of them, and a machine for the gpu
target has no OpenVINO.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import yaml

from nvlm_trt.decoder.convert import converted_bytes
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.mini_tokenizer import MERGES_FILE
from nvlm_trt.model.tensors import DECODER_PREFIX
from nvlm_trt.model.tokenizer import FILES as TOKENIZER_FILES
from nvlm_trt.pipeline.sources import CHECKPOINT_FOLDER, Sources
from nvlm_trt.pipeline.stage import Estimate, Stage, StageContext
from nvlm_trt.recipe import BuildRecipe

BASE_BYTES = 600 << 20
"""Resident memory of the process with torch and OpenVINO loaded, and of the blocks that are streamed through it."""

STORED_DTYPES = {"fp32": "float32", "fp16": "float16"}
"""Values of the TensorRT-LLM checkpoint by decoder precision; every other precision starts from bfloat16."""

NEEDS_TENSORRT = "it needs TensorRT and a GPU, which are not part of this release"
REPOSITORY_FOLDER = "triton_repo"


def build_plan(sources: Sources) -> tuple[Stage, ...]:
    """All stages of a build in the order in which they run."""
    made = () if sources.synthetic is None else (_synth(sources),)
    return (
        *made,
        _inspect(sources),
        _vision_export(sources),
        _vision_compile(sources),
        _decoder_convert(sources),
        _decoder_compile(sources),
        _verify(sources),
        _package(sources),
    )


def stored_dtype_name(recipe: BuildRecipe) -> str:
    """The dtype of the TensorRT-LLM checkpoint's values."""
    return STORED_DTYPES.get(recipe.decoder_precision, "bfloat16")


def export_precision(recipe: BuildRecipe) -> str:
    """The precision of the ONNX graph: quantised engines start from the bf16 graph."""
    return "fp32" if recipe.vision_precision == "fp32" else "bf16"


def table_precision(recipe: BuildRecipe) -> str:
    """The type of the prompt table as it leaves the ONNX graph: the one that the decoder takes.

    TensorRT-LLM demands its engine's own type; the cpu decoder takes float32 in every precision.
    """
    if recipe.target == "cpu":
        return "fp32"
    return "fp16" if recipe.decoder_precision == "fp16" else "bf16"


def _source_of(sources: Sources) -> tuple[str, ...]:
    """The stage that makes the checkpoint, as an input of those that read it."""
    return () if sources.synthetic is None else ("synth",)


def _lacks(sources: Sources) -> str | None:
    return NEEDS_TENSORRT if sources.recipe.target == "gpu" else None


def _synth(sources: Sources) -> Stage:
    spec = sources.synthetic
    assert spec is not None

    def run(context: StageContext) -> None:
        from nvlm_trt.model.synthetic import write_synthetic

        write_synthetic(context.out / CHECKPOINT_FOLDER, spec, progress=context.progress)

    return Stage(
        name="synth",
        inputs=(),
        outputs=(CHECKPOINT_FOLDER,),
        parts={"spec": dataclasses.asdict(spec), "seed": 0},
        modules=("nvlm_trt.model.synthetic",),
        tools=("torch",),
        run=run,
        estimate=Estimate(sources.checkpoint.nbytes, BASE_BYTES),
        files=(MERGES_FILE,),
    )


def _inspect(sources: Sources) -> Stage:
    """Checks values that headers do not show, and keeps what the engine needs of the checkpoint besides weights."""
    recipe = sources.recipe.model_dump(mode="json")

    def run(context: StageContext) -> None:
        checkpoint = Checkpoint.open(sources.checkpoint.path)
        checkpoint.check_dummy_heads()
        (context.out / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        shutil.copyfile(checkpoint.path / "config.json", context.out / "config.json")
        _copy_tokenizer(checkpoint.path, context.out / "tokenizer")
        for remark in sources.remarks():
            context.log(remark)

    return Stage(
        name="inspect",
        inputs=_source_of(sources),
        outputs=("recipe.yaml", "config.json", "tokenizer"),
        parts={"recipe": recipe},
        modules=("nvlm_trt.model.checkpoint", "nvlm_trt.model.tokenizer", "nvlm_trt.recipe"),
        tools=("PyYAML",),
        run=run,
        estimate=Estimate(16 << 20, BASE_BYTES),
        reads_checkpoint=True,
    )


def _copy_tokenizer(source: Path, target: Path) -> None:
    from nvlm_trt.model.tokenizer import NvlmTokenizer

    NvlmTokenizer.load(source)
    target.mkdir()
    for name in TOKENIZER_FILES:
        shutil.copyfile(source / name, target / name)


def _vision_export(sources: Sources) -> Stage:
    from nvlm_trt.vision.export import vision_export_bytes

    precision, table = export_precision(sources.recipe), table_precision(sources.recipe)

    def run(context: StageContext) -> None:
        from nvlm_trt.vision.export import export_vision

        checkpoint = Checkpoint.open(sources.checkpoint.path)
        export_vision(
            checkpoint,
            _folder(context, "vision"),
            precision=precision,
            output_dtype=table,
            progress=context.progress,
        )

    return Stage(
        name="vision-export",
        inputs=_source_of(sources),
        outputs=("vision/vision.onnx", "vision/vision.onnx.data", "vision/config.json"),
        parts={"precision": precision, "table": table},
        modules=("nvlm_trt.vision.export",),
        tools=("onnx", "torch", "numpy", "ml_dtypes"),
        run=run,
        estimate=Estimate(vision_export_bytes(sources.checkpoint, precision), BASE_BYTES),
        reads_checkpoint=True,
    )


def _vision_compile(sources: Sources) -> Stage:
    from nvlm_trt.vision.export import vision_export_bytes

    precision = sources.recipe.vision_precision

    def run(context: StageContext) -> None:
        from nvlm_trt.vision.build_cpu import build_vision_cpu

        onnx = context.engine / "vision" / "vision.onnx"
        build_vision_cpu(onnx, _folder(context, "vision/cpu"), precision=precision, progress=context.progress)

    size = vision_export_bytes(sources.checkpoint, export_precision(sources.recipe))
    return Stage(
        name="vision-compile",
        inputs=("vision-export",),
        outputs=("vision/cpu",) if sources.recipe.target == "cpu" else ("vision/model.plan",),
        parts={"precision": precision},
        modules=("nvlm_trt.vision.build_cpu",),
        tools=("openvino",),
        run=run,
        estimate=Estimate(size, BASE_BYTES + size * 5 // 4),
        lacks=_lacks(sources),
    )


def _decoder_convert(sources: Sources) -> Stage:
    recipe, dtype = sources.recipe, stored_dtype_name(sources.recipe)

    def run(context: StageContext) -> None:
        from nvlm_trt.decoder.convert import convert_decoder

        convert_decoder(
            Checkpoint.open(sources.checkpoint.path),
            _folder(context, "decoder/checkpoint"),
            tp=recipe.tp,
            pp=recipe.pp,
            dtype=dtype,
            progress=context.progress,
        )

    size = converted_bytes(sources.checkpoint.config, recipe.tp, recipe.pp, dtype)
    return Stage(
        name="decoder-convert",
        inputs=_source_of(sources),
        outputs=("decoder/checkpoint",),
        parts={"tp": recipe.tp, "pp": recipe.pp, "dtype": dtype},
        modules=("nvlm_trt.decoder.convert",),
        tools=("torch", "numpy"),
        run=run,
        estimate=Estimate(size, BASE_BYTES),
        reads_checkpoint=True,
    )


def _decoder_compile(sources: Sources) -> Stage:
    recipe = sources.recipe
    limits = {
        "precision": recipe.decoder_precision,
        "max_batch_size": recipe.max_batch_size,
        "max_seq_len": sources.max_seq_len,
        "max_prompt_table_rows": sources.max_table_rows,
    }

    def run(context: StageContext) -> None:
        from nvlm_trt.decoder.build_cpu import build_decoder_cpu

        build_decoder_cpu(
            context.engine / "decoder" / "checkpoint",
            _folder(context, "decoder/cpu"),
            precision=recipe.decoder_precision,
            max_batch_size=recipe.max_batch_size,
            max_seq_len=sources.max_seq_len,
            max_prompt_table_rows=sources.max_table_rows,
            progress=context.progress,
        )

    size = _decoder_engine_bytes(sources)
    decoder = sources.checkpoint.config.decoder
    widest = 4 * decoder.vocab_size * decoder.hidden_size  # the embedding in float32
    return Stage(
        name="decoder-compile",
        inputs=("decoder-convert",),
        outputs=("decoder/cpu",) if recipe.target == "cpu" else ("decoder/engine",),
        parts=limits,
        modules=("nvlm_trt.decoder.build_cpu",),
        tools=("openvino", "torch", "numpy"),
        run=run,
        estimate=Estimate(size, BASE_BYTES + size + 2 * widest),
        lacks=_lacks(sources),
    )


def _decoder_engine_bytes(sources: Sources) -> int:
    if sources.recipe.target == "gpu":
        return 0
    from nvlm_trt.decoder.build_cpu import engine_bytes

    return engine_bytes(sources.checkpoint.config.decoder, sources.recipe.decoder_precision)


def _verify(sources: Sources) -> Stage:
    recipe = sources.recipe

    def run(context: StageContext) -> None:
        from nvlm_trt.verify.engine import verify_engine

        report = verify_engine(context.engine, sources.checkpoint.path, recipe, log=context.log)
        for line in report.lines():
            context.log(line)
        (context.out / "verify.json").write_bytes(report.encoded())
        report.require_ok()

    tensors = sources.checkpoint.tensors.values()
    decoder = sum(info.nbytes for info in tensors if info.name.startswith(DECODER_PREFIX))
    widened = 2 * decoder  # the oracle holds bfloat16 weights as float32
    return Stage(
        name="verify",
        inputs=("inspect", "vision-compile", "decoder-convert", "decoder-compile"),
        outputs=("verify.json",),
        parts={"prompts": recipe.verify_prompts, "tokens": recipe.verify_tokens},
        modules=("nvlm_trt.verify.engine",),
        tools=("openvino", "torch", "numpy", "tokenizers", "Pillow"),
        run=run,
        estimate=Estimate(1 << 20, BASE_BYTES + widened + 2 * _decoder_engine_bytes(sources)),
        reads_checkpoint=True,
        lacks=_lacks(sources),
    )


def _package(sources: Sources) -> Stage:
    from nvlm_trt.serving.package import CHECKOUT_SOURCES, INSTALLED_SOURCES

    recipe = sources.recipe
    models = [path for folder in (INSTALLED_SOURCES, CHECKOUT_SOURCES) for path in sorted(folder.glob("*/model.py"))]

    def run(context: StageContext) -> None:
        from nvlm_trt.serving.package import write_repository

        write_repository(context.engine, _folder(context, REPOSITORY_FOLDER), recipe)

    return Stage(
        name="package",
        inputs=("inspect", "vision-compile", "decoder-compile"),
        outputs=(REPOSITORY_FOLDER,),
        parts={},
        modules=("nvlm_trt.serving.package",),
        tools=("protobuf", "tritonclient"),
        run=run,
        estimate=Estimate(16 << 20, BASE_BYTES),
        lacks=_lacks(sources),
        files=tuple(models),
    )


def _folder(context: StageContext, name: str) -> Path:
    folder = context.out / name
    folder.mkdir(parents=True)
    return folder

"""Compile the exported ONNX graph for the CPU with OpenVINO: `model.xml`, `model.bin`, `config.json`.

The graph that TensorRT takes is the one read here. The bf16 graph runs under OpenVINO's bf16 hint, where it is as close
to the reference and as fast as the FP32 graph would be, at half the bytes; the FP32 graph runs under the f32 hint. Of
the int8 graph OpenVINO turns every linear layer between its Q/DQ nodes into a product of 8-bit integers; the rest runs
under the hint of the type that the graph otherwise computes in. fp8 graphs are not for this target: OpenVINO has no
kernels for them on a CPU, and would multiply in float.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import openvino as ov

from nvlm_trt.errors import BuildError, RecipeError
from nvlm_trt.progress import Progress
from nvlm_trt.vision.description import CpuEngineDescription, VisionDescription
from nvlm_trt.vision.dtypes import GRAPH_PRECISIONS

PRECISIONS = (*GRAPH_PRECISIONS, "int8")
"""What a vision engine of the cpu target can be built in."""

XML_NAME = "model.xml"
BIN_NAME = "model.bin"

ONE = {"f32": b"\x00\x00\x80\x3f", "bf16": b"\x80\x3f"}
"""The bytes of a scalar one; OpenVINO shows bf16 constants to NumPy as float16, so their values cannot be compared."""

GENERATED_NAME = re.compile(r"[A-Za-z]+_\d+")
"""How OpenVINO names what it adds (Multiply_21); the names of the graph are paths."""


def build_vision_cpu(onnx_path: Path, out_dir: Path, *, precision: str, progress: Progress | None = None) -> None:
    """Write the OpenVINO model of `onnx_path` into `out_dir`.

    Args:
        onnx_path: `vision.onnx` of an export, beside its weights and its `config.json`.
        out_dir: An existing directory.
        precision: "fp32", "bf16" or "int8"; must be the export's own.
        progress: Told the bytes of `model.bin` written: OpenVINO writes it in one go.

    Raises:
        RecipeError: unknown precision, or not that of the export.
        EngineError: the export's `config.json` is missing or damaged.
        BuildError: OpenVINO cannot read the graph or its weights.
    """
    if precision not in PRECISIONS:
        raise RecipeError(
            "the cpu target has no such vision precision", seen=precision, expected=" or ".join(PRECISIONS)
        )
    source = VisionDescription.load(onnx_path.parent)
    if precision != source.precision:
        raise RecipeError(
            "the vision export is of another precision",
            seen=source.precision,
            expected=precision,
            fix="export it again",
        )
    if progress is not None:
        progress(0, source.data_bytes)
    try:
        model = _with_fp32_output(ov.Core().read_model(onnx_path))
        _drop_unit_factors(model)
        _settle_names(model)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise BuildError(f"OpenVINO cannot compile the vision graph ({reason})", seen=onnx_path) from error
    try:
        ov.save_model(model, out_dir / XML_NAME, compress_to_fp16=False)
    except RuntimeError as error:
        raise BuildError(f"the vision engine cannot be written ({error})", fix="check the disk") from None
    xml = (out_dir / XML_NAME).read_bytes()
    CpuEngineDescription(
        precision=source.compute or source.precision,
        openvino=ov.get_version(),
        xml_sha256=hashlib.sha256(xml).hexdigest(),
        bin_bytes=(out_dir / BIN_NAME).stat().st_size,
        source=source,
    ).save(out_dir)
    if progress is not None:
        progress(source.data_bytes, source.data_bytes)


def _with_fp32_output(model: ov.Model) -> ov.Model:
    """The table in float32, whatever the decoder takes: NumPy has no bfloat16, and widening loses nothing."""
    process = ov.preprocess.PrePostProcessor(model)
    process.output().tensor().set_element_type(ov.Type.f32)
    return process.build()


def _drop_unit_factors(model: ov.Model) -> None:
    """Remove the multiplications by one that OpenVINO's reader makes of a Gemm's default alpha.

    Left in place, every load multiplies them into the weights: minutes and twice the memory for the released model.
    """
    for operation in model.get_ordered_ops():
        if operation.get_type_name() != "Multiply":
            continue
        factor = operation.input_value(1).get_node()
        if factor.get_type_name() != "Constant" or factor.get_output_shape(0):
            continue
        if factor.get_data().tobytes() == ONE.get(factor.get_element_type().get_type_name()):
            operation.output(0).replace(operation.input_value(0))


def _settle_names(model: ov.Model) -> None:
    """Name the operations that OpenVINO added by their position.

    Its own names count the operations that the process has made so far: the second build in a process would differ.
    """
    for position, operation in enumerate(model.get_ordered_ops()):
        if GENERATED_NAME.fullmatch(operation.get_friendly_name()):
            operation.set_friendly_name(f"{operation.get_type_name()}_{position}")

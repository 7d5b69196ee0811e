"""GPU models as data: one YAML file each beside this module, every figure with its source.

Peaks are dense (no sparsity), memory is decimal as sold. `corrections` turn a roofline into an estimate: each is a
factor with the measurement it comes from. The files shipped here have none, so their plans are pure rooflines.
"""

from __future__ import annotations

import difflib
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nvlm_trt.errors import UserError
from nvlm_trt.parsed import yaml_value

COMPUTE_DTYPES = {
    "fp32": "fp32",
    "bf16": "bf16",
    "fp16": "bf16",
    "fp8": "fp8",
    "int8": "int8",
    "int8_sq": "int8",
    "int8_wo": "bf16",
    "int4_wo": "bf16",
    "int4_awq": "bf16",
}
"""The peak that the matrix products of a precision run at: weight-only kinds compute in bf16.

fp32 is that of the ordinary cores: the vision engine is built with TF32 off (nvlm_trt/vision/build_tensorrt.py).
"""

Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShareCorrection(_Data):
    """A share of a datasheet figure that is reached, and where that was measured."""

    value: Share
    source: Text


class TimeCorrection(_Data):
    """A time in microseconds, and where it was measured."""

    value: Positive
    source: Text


class Corrections(_Data):
    """Labelled factors; what is absent is not corrected.

    Attributes:
        vision_share_of_peak: Of the peak, reached by the vision engine.
        prefill_share_of_peak: Of the peak, reached while prompts are read.
        decode_share_of_bandwidth: Of the memory bandwidth, reached by the engine in a decode step.
        all_reduce_latency_us: Of one all-reduce; each layer has two, where tp > 1.
        interconnect_share: Of one direction of the interconnect, reached by the all-reduces of a prefill; absent, and
            between nodes: their transfer is not counted.
    """

    vision_share_of_peak: ShareCorrection | None = None
    prefill_share_of_peak: ShareCorrection | None = None
    decode_share_of_bandwidth: ShareCorrection | None = None
    all_reduce_latency_us: TimeCorrection | None = None
    interconnect_share: ShareCorrection | None = None

    def applied(self) -> dict[str, ShareCorrection | TimeCorrection]:
        """Those that are there, by name."""
        named = ((name, getattr(self, name)) for name in type(self).model_fields)
        return {name: correction for name, correction in named if correction is not None}


class Peaks(_Data):
    """Dense peaks of matrix products in TFLOP/s (TOP/s of int8); None where the GPU lacks the type."""

    fp32: Positive
    bf16: Positive
    fp8: Positive | None = None
    int8: Positive


class Interconnect(_Data):
    """How the GPUs of a machine reach each other: GB/s of one GPU, both directions together, as in datasheets."""

    kind: Literal["nvlink", "pcie"]
    gb_per_s: Positive


class Sources(_Data):
    """Where each figure was read."""

    compute_capability: Text
    memory_gb: Text
    bandwidth_gb_per_s: Text
    peak_tflops: Text
    interconnect: Text


class Datasheet(_Data):
    """One GPU model.

    Attributes:
        name: The stem of its file.
        title: Its full name.
        compute_capability: 90 for 9.0.
        memory_gb: Decimal gigabytes, as sold.
        bandwidth_gb_per_s: Of its memory.
        peak_tflops: Of its matrix units, fp32 of its ordinary cores.
        interconnect: To the other GPUs of the machine.
        sources: Where each figure was read.
        corrections: None of them unless somebody measured.
    """

    name: str
    title: Text
    compute_capability: Annotated[int, Field(ge=50)]
    memory_gb: Positive
    bandwidth_gb_per_s: Positive
    peak_tflops: Peaks
    interconnect: Interconnect
    sources: Sources
    corrections: Corrections = Corrections()

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory."""
        return round(self.memory_gb * 1e9)

    @property
    def bandwidth(self) -> float:
        """Bytes a second of its memory."""
        return self.bandwidth_gb_per_s * 1e9

    @property
    def link(self) -> float:
        """Bytes a second of one direction of the interconnect."""
        return self.interconnect.gb_per_s * 1e9 / 2

    def peak(self, precision: str) -> float:
        """FLOP/s of the matrix products of a vision or decoder precision.

        Raises:
            UserError: the GPU does not have the type.
        """
        dtype = COMPUTE_DTYPES[precision]
        tflops: float | None = getattr(self.peak_tflops, dtype)
        if tflops is None:
            raise UserError(
                "the GPU model has no such type", seen=f"{self.name}: {dtype}", fix="take another precision"
            )
        return tflops * 1e12


def known_gpus() -> tuple[str, ...]:
    """Names of the GPU models that have a file, sorted."""
    return tuple(sorted(path.name.removesuffix(".yaml") for path in _folder().iterdir() if path.name.endswith(".yaml")))


def load_gpu(name: str) -> Datasheet:
    """The GPU model of that name, or of the YAML file at that path.

    Raises:
        UserError: there is none, or the file has an unknown, missing or impossible figure.
    """
    key = name.lower().replace(" ", "-")
    if key in known_gpus():
        return _parse(_folder() / f"{key}.yaml", key)
    if name.endswith((".yaml", ".yml")):
        return _parse(Path(name), Path(name).stem)
    longer = [known for known in known_gpus() if known.startswith(key)]
    near = longer[-1:] or difflib.get_close_matches(key, known_gpus(), n=1, cutoff=0.4)
    raise UserError(
        "there is no such GPU model",
        seen=name,
        expected=", ".join(known_gpus()) + ", or the path of a YAML file like theirs",
        fix=f"did you mean {near[0]}?" if near else None,
    )


def _folder() -> Traversable:
    return files("nvlm_trt.datasheets")


def _parse(source: Path | Traversable, name: str) -> Datasheet:
    try:
        raw = yaml_value(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"the GPU model cannot be read ({error})", seen=source) from None
    if not isinstance(raw, dict):
        raise UserError("a GPU model is a mapping of figures", seen=f"{source}: {type(raw).__name__}")
    try:
        return Datasheet.model_validate({"name": name, **raw})
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise UserError(f"GPU model {name}: {faults}", fix="see nvlm_trt/datasheets/h100-sxm.yaml") from None

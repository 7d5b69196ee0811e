"""What a vision stage left behind: the `config.json` beside the ONNX file, and the one beside the CPU engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nvlm_trt.errors import EngineError
from nvlm_trt.vision.dtypes import GRAPH_PRECISIONS, QUANTIZATIONS

CONFIG_NAME = "config.json"

Precision = Annotated[str, Field(pattern=f"^({'|'.join(GRAPH_PRECISIONS)})$")]
ExportPrecision = Annotated[str, Field(pattern=f"^({'|'.join((*GRAPH_PRECISIONS, *QUANTIZATIONS))})$")]


class _Description(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def save(self, directory: Path) -> None:
        """Write `config.json` into `directory`."""
        (directory / CONFIG_NAME).write_text(self.model_dump_json(indent=2, exclude_none=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read `config.json` of `directory`.

        Raises:
            EngineError: there is none, or it is not what this version writes.
        """
        path = directory / CONFIG_NAME
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise EngineError("a vision directory has no config.json", seen=directory, fix="build it again") from None
        except OSError as error:
            raise EngineError(f"a vision config.json cannot be read ({error.strerror})", seen=path) from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise EngineError(
                f"a vision config.json is damaged or of another version ({where}: {first['msg']})",
                seen=path,
                fix="build it again",
            ) from None


class TensorDescription(_Description):
    """An input or output of the graph; `num_tiles` stands for any number of tiles."""

    name: str
    dtype: str
    shape: list[int | str]


class VisionDescription(_Description):
    """The vision encoder as exported.

    Attributes:
        format: Version of this file's layout.
        precision: Type that the graph computes in, or how its linear layers are quantised.
        compute: Type that a quantised graph computes in otherwise; None for other graphs.
        input: RGB tiles, values 0 to 255, rows first.
        output: Rows of the decoder's prompt table, as the ONNX graph emits them.
        opset: ONNX opset of the graph.
        tile_size: Side of a tile in pixels.
        tokens_per_tile: Rows of the prompt table that one tile makes.
        hidden_size: Width of a row: the decoder's hidden size.
        num_layers: ViT blocks.
        num_heads: Real attention heads.
        stripped_dummy_heads: Zero heads of the checkpoint that the graph leaves out.
        mean: Mean of RGB in [0, 1] that the graph subtracts.
        std: Standard deviation that it divides by.
        data_bytes: Length of the external weights file.
    """

    format: Literal[1] = 1
    precision: ExportPrecision
    compute: Precision | None = None
    input: TensorDescription
    output: TensorDescription
    opset: int
    tile_size: int
    tokens_per_tile: int
    hidden_size: int
    num_layers: int
    num_heads: int
    stripped_dummy_heads: int
    mean: list[float]
    std: list[float]
    data_bytes: int


class CpuEngineDescription(_Description):
    """The OpenVINO model compiled from an export.

    Attributes:
        format: Version of this file's layout.
        precision: Type that it computes in; "bf16" runs as fp32 on a processor without bf16 instructions.
        openvino: Version that wrote the model.
        xml_sha256: Digest of `model.xml`.
        bin_bytes: Length of `model.bin`.
        source: The export that it was compiled from.
    """

    format: Literal[1] = 1
    precision: Precision
    openvino: str
    xml_sha256: str
    bin_bytes: int
    source: VisionDescription

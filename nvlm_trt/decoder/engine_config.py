"""What a compiled cpu decoder is: the config.json beside its model.xml."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from nvlm_trt.errors import EngineError

FORMAT = 1
"""Raised when a change makes older engine directories unreadable."""

BLOCK_SIZE = 32
"""Tokens in a block of the KV cache; fixed by OpenVINO's CPU plugin."""

BF16_COMPUTE = ("bf16", "int8")
"""Precisions that compute and cache in bf16 where the CPU can; the others do so in float32."""

CONFIG_NAME = "config.json"
MODEL_NAME = "model.xml"


@dataclass(frozen=True, slots=True)
class DecoderEngineConfig:
    """Shapes and limits of a compiled decoder.

    Attributes:
        format: Version of the directory's layout.
        precision: "fp32", "bf16", "int8", "int8_wo" or "int4_wo".
        vocab_size: Rows of the embedding; ids from here on are rows of a request's prompt table.
        hidden_size: Width of the prompt table.
        num_layers: Layers, each with a key and a value cache.
        num_heads: Query heads.
        num_kv_heads: Key and value heads.
        head_dim: Width of a head.
        block_size: Tokens in a block of the KV cache.
        max_batch_size: Sequences in one step at most.
        max_seq_len: Prompt and answer of one request at most, in tokens.
        max_prompt_table_rows: Rows of one request's prompt table at most.
    """

    format: int
    precision: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    max_batch_size: int
    max_seq_len: int
    max_prompt_table_rows: int

    def write(self, directory: Path) -> None:
        """Write config.json."""
        (directory / CONFIG_NAME).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> DecoderEngineConfig:
        """Read and check config.json.

        Raises:
            EngineError: it is missing, unreadable, or of another format.
        """
        path = directory / CONFIG_NAME
        fix = "build the engine again"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise EngineError("there is no compiled decoder", seen=directory.name, fix=fix) from None
        except (OSError, ValueError) as error:
            raise EngineError(f"the decoder's config.json cannot be read ({error})", fix=fix) from None
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            seen = raw.get("format") if isinstance(raw, dict) else type(raw).__name__
            raise EngineError("the compiled decoder has another format", seen=seen, expected=FORMAT, fix=fix)
        names = {field.name for field in fields(cls)}
        wrong = sorted(names ^ raw.keys()) + sorted(
            name for name in names & raw.keys() if not isinstance(raw[name], str if name == "precision" else int)
        )
        if wrong:
            raise EngineError("the decoder's config.json has wrong members", seen=", ".join(wrong), fix=fix)
        if raw["block_size"] != BLOCK_SIZE:
            raise EngineError("the KV cache has other blocks", seen=raw["block_size"], expected=BLOCK_SIZE, fix=fix)
        return cls(**raw)

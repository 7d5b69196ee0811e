"""The config.json of a TensorRT-LLM checkpoint: how it is written and how it is read back.

Written keys are those that `PretrainedConfig`, `QWenConfig` and the Qwen model code of TensorRT-LLM 1.x read
(tensorrt_llm/models/modeling_utils.py, models/qwen/config.py). An unknown key at the top level is accepted there, but
an unknown one inside `mapping` or `quantization` raises, and both grow with each release: so only the members that
every release knows are written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeVar

from nvlm_trt.decoder.precision import (
    DEFAULT_GROUP_SIZE,
    GROUP_SIZES,
    STORED_DTYPES,
    UNQUANTIZED,
    KvCacheAlgo,
    Precision,
    QuantAlgo,
    Quantization,
    StoredDtype,
)
from nvlm_trt.errors import CheckpointError
from nvlm_trt.model.config import DecoderConfig

CONFIG_NAME = "config.json"

LOGN_SEQ_LENGTH = 8192
"""`seq_length` as the official converter writes it for Qwen2, whose own config has no such key (qwen/config.py)."""


UNPADDED_KEY = "unpadded_intermediate_size"
"""A key of this project's own, there only where the MLP is padded; TensorRT-LLM logs a warning and goes on."""

GPUS_PER_NODE: Final = 8
"""TensorRT-LLM's own default."""

Algo = TypeVar("Algo", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class TrtllmConfig:
    """What config.json says: the decoder's shapes, how its values are stored, and how ranks share them.

    Attributes:
        decoder: Shapes and constants of the Qwen2 decoder as stored: its MLP is padded where the precision asks for it.
        dtype: Of every value that is not quantised.
        tp: Ranks that share each layer.
        pp: Stages that share the list of layers.
        gpus_per_node: GPUs of each node: rank r computes on GPU r modulo this.
        quantization: How the other values are stored.
        unpadded_intermediate_size: The MLP's width without padding, where there is some; else None.
    """

    decoder: DecoderConfig
    dtype: StoredDtype
    tp: int
    pp: int
    gpus_per_node: int = GPUS_PER_NODE
    quantization: Quantization = UNQUANTIZED
    unpadded_intermediate_size: int | None = None

    @classmethod
    def of(
        cls, decoder: DecoderConfig, precision: Precision, *, tp: int, pp: int, gpus_per_node: int = GPUS_PER_NODE
    ) -> TrtllmConfig:
        """What to write for a decoder as it is in the source: its MLP is padded here."""
        real = decoder.intermediate_size
        wide = precision.padded_intermediate(real, tp)
        return cls(
            decoder=replace(decoder, intermediate_size=wide),
            dtype=precision.dtype,
            tp=tp,
            pp=pp,
            gpus_per_node=gpus_per_node,
            quantization=precision.quantization,
            unpadded_intermediate_size=None if wide == real else real,
        )

    @property
    def precision(self) -> Precision:
        """How values are stored."""
        return Precision(self.dtype, self.quantization)

    @property
    def unpadded(self) -> DecoderConfig:
        """The decoder as it is in the source."""
        size = self.unpadded_intermediate_size
        return self.decoder if size is None else replace(self.decoder, intermediate_size=size)

    @property
    def world_size(self) -> int:
        """Ranks in all, one file each."""
        return self.tp * self.pp

    def to_dict(self) -> dict[str, object]:
        """The JSON object of config.json."""
        decoder = self.decoder
        unpadded = self.unpadded_intermediate_size
        return {
            "architecture": "Qwen2ForCausalLM",
            "qwen_type": "qwen2",
            "dtype": self.dtype.name,
            "logits_dtype": "float32",
            "vocab_size": decoder.vocab_size,
            "hidden_size": decoder.hidden_size,
            "intermediate_size": decoder.intermediate_size,
            "num_hidden_layers": decoder.num_layers,
            "num_attention_heads": decoder.num_heads,
            "num_key_value_heads": decoder.num_kv_heads,
            "head_size": decoder.head_dim,
            "hidden_act": "silu",
            "norm_epsilon": decoder.rms_norm_eps,
            "attn_bias": True,
            "mlp_bias": False,
            "qk_layernorm": False,
            "position_embedding_type": "rope_gpt_neox",
            "max_position_embeddings": decoder.max_position_embeddings,
            "rotary_embedding_dim": decoder.head_dim,
            "rotary_base": decoder.rope_theta,
            "rotary_scaling": None,
            "seq_length": LOGN_SEQ_LENGTH,
            "use_logn_attn": False,
            "tie_word_embeddings": False,
            "use_parallel_embedding": False,
            "embedding_sharding_dim": 0,
            "mapping": {"world_size": self.world_size, "tp_size": self.tp, "pp_size": self.pp}
            | ({} if self.gpus_per_node == GPUS_PER_NODE else {"gpus_per_node": self.gpus_per_node}),
            "quantization": self.quantization.to_dict(),
        } | ({} if unpadded is None else {UNPADDED_KEY: unpadded})

    def write(self, directory: Path) -> None:
        """Write config.json whole or not at all: beside, then renamed."""
        path = directory / CONFIG_NAME
        beside = path.with_suffix(".json.partial")
        with beside.open("w", encoding="utf-8") as file:
            json.dump(self.to_dict(), file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)

    @classmethod
    def read(cls, directory: Path) -> TrtllmConfig:
        """Read and check config.json.

        Raises:
            CheckpointError: it is absent or unreadable, or not a Qwen2 checkpoint of a known precision; every fault is
                listed.
        """
        path = directory / CONFIG_NAME
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(
                "there is no TensorRT-LLM checkpoint (config.json is written last)",
                seen=directory,
                fix="run the decoder-convert stage",
            ) from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"config.json cannot be read ({error})", seen=path) from None
        if not isinstance(raw, dict):
            raise CheckpointError("config.json is not an object", seen=path)
        return _Reader(raw).config()


class _Reader:
    """Takes the members of a parsed config.json and gathers every fault before it complains."""

    def __init__(self, raw: Mapping[str, object]) -> None:
        self._raw = raw
        self._faults: list[str] = []

    def config(self) -> TrtllmConfig:
        """The checked configuration."""
        decoder = DecoderConfig(
            hidden_size=self._whole("hidden_size"),
            intermediate_size=self._whole("intermediate_size"),
            num_layers=self._whole("num_hidden_layers"),
            num_heads=self._whole("num_attention_heads"),
            num_kv_heads=self._whole("num_key_value_heads"),
            vocab_size=self._whole("vocab_size"),
            rms_norm_eps=self._positive("norm_epsilon"),
            rope_theta=self._positive("rotary_base"),
            max_position_embeddings=self._whole("max_position_embeddings"),
        )
        self._expect(self._raw, "architecture", "Qwen2ForCausalLM")
        self._expect(self._raw, "qwen_type", "qwen2")
        self._expect(self._raw, "hidden_act", "silu")
        self._expect(self._raw, "position_embedding_type", "rope_gpt_neox")
        self._expect(self._raw, "head_size", decoder.head_dim)
        self._expect(self._raw, "rotary_embedding_dim", decoder.head_dim, absent=True)
        self._expect(self._raw, "rotary_scaling", None, absent=True)
        self._expect(self._raw, "use_parallel_embedding", False, absent=True)
        quantization = self._quantization(self._object("quantization"))
        mapping = self._object("mapping")
        tp, pp = self._whole("tp_size", mapping), self._whole("pp_size", mapping)
        self._expect(mapping, "cp_size", 1, absent=True)
        self._expect(mapping, "world_size", tp * pp)
        gpus = self._whole("gpus_per_node", mapping) if "gpus_per_node" in mapping else GPUS_PER_NODE
        unpadded = self._whole(UNPADDED_KEY) if UNPADDED_KEY in self._raw else None
        dtype = STORED_DTYPES.get(str(self._raw.get("dtype")))
        if dtype is None:
            self._fault("dtype", self._raw.get("dtype"), " | ".join(STORED_DTYPES))
        else:
            wide = Precision(dtype, quantization).padded_intermediate(unpadded or decoder.intermediate_size, tp)
            self._expect(self._raw, "intermediate_size", wide)
        if self._faults or dtype is None:
            raise CheckpointError(
                "config.json does not describe a Qwen2 checkpoint of TensorRT-LLM: " + "; ".join(self._faults),
                fix="convert the checkpoint again",
            )
        return TrtllmConfig(decoder, dtype, tp, pp, gpus, quantization, unpadded)

    def _quantization(self, raw: Mapping[str, object]) -> Quantization:
        algo = self._algo("quant_algo", raw, QuantAlgo)
        kv_cache = self._algo("kv_cache_quant_algo", raw, KvCacheAlgo)
        if algo is None:
            return Quantization(None, kv_cache)
        self._expect(raw, "exclude_modules", None, absent=True)
        if algo != QuantAlgo.AWQ:
            return Quantization(algo, kv_cache)
        self._expect(raw, "pre_quant_scale", True)
        self._expect(raw, "has_zero_point", False, absent=True)
        group_size = raw.get("group_size", DEFAULT_GROUP_SIZE)
        if group_size not in GROUP_SIZES:
            self._fault("group_size", group_size, " | ".join(map(str, GROUP_SIZES)))
            group_size = DEFAULT_GROUP_SIZE
        return Quantization(algo, kv_cache, group_size)

    def _algo(self, key: str, raw: Mapping[str, object], known: type[Algo]) -> Algo | None:
        value = raw.get(key)
        for algo in known:
            if value == algo:
                return algo
        if value is not None:
            self._fault(key, value, " | ".join(("null", *known)))
        return None

    def _fault(self, key: str, seen: object, expected: object) -> None:
        self._faults.append(f"{key} is {json.dumps(seen)}, expected {expected}")

    def _expect(self, raw: Mapping[str, object], key: str, value: object, *, absent: bool = False) -> None:
        if key not in raw and absent:
            return
        if raw.get(key) != value:
            self._fault(key, raw.get(key), json.dumps(value))

    def _whole(self, key: str, raw: Mapping[str, object] | None = None) -> int:
        value = (self._raw if raw is None else raw).get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        self._fault(key, value, "a positive whole number")
        return 1

    def _positive(self, key: str) -> float:
        value = self._raw.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            return float(value)
        self._fault(key, value, "a positive number")
        return 1.0

    def _object(self, key: str) -> Mapping[str, object]:
        value = self._raw.get(key)
        if isinstance(value, dict):
            return value
        self._fault(key, value, "an object")
        return {}

"""A second writer of quantised TensorRT-LLM checkpoints, for tests: whole matrices are quantised, then dealt to ranks.

It shares no code with nvlm_trt.decoder's and follows the names, shapes and packing that TensorRT-LLM's classes read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own short name
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.decoder import DecoderReference, KvCache
from nvlm_trt.verify.sharded import Prompt

SOURCES = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.dense": ("self_attn.o_proj",),
    "mlp.fc": ("mlp.gate_proj",),
    "mlp.gate": ("mlp.up_proj",),
    "mlp.proj": ("mlp.down_proj",),
}
SPLIT_BY_COLUMNS = ("attention.dense", "mlp.proj")
GROUP = 64


@dataclass(frozen=True)
class Format:
    """The `quantization` object of config.json, and the dtype of what is not quantised."""

    algo: str | None
    kv: str | None = None
    dtype: torch.dtype = torch.bfloat16


class Observed(TorchFunctionMode):
    """Largest magnitudes that the reference meets: of every input channel of every weight, and of keys and values."""

    def __init__(self, checkpoint: Checkpoint, prompts: Sequence[Prompt]) -> None:
        super().__init__()
        self.inputs: dict[str, torch.Tensor] = {}
        self.kv: dict[int, float] = {}
        reference = DecoderReference(checkpoint)
        self._names = {id(weight): name for name, weight in reference._weights.items()}
        observed = self

        class Cache(KvCache):
            def extend(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                largest = max(float(k.abs().max()), float(v.abs().max()))
                observed.kv[layer] = max(observed.kv.get(layer, 0.0), largest)
                return super().extend(layer, k, v)

        with torch.inference_mode(), self:
            for ids, table in prompts:
                reference._forward(reference.embed(ids, table), Cache())

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is F.linear and id(args[1]) in self._names:
            name, seen = self._names[id(args[1])], args[0].abs().amax(dim=0)
            self.inputs[name] = torch.maximum(self.inputs[name], seen) if name in self.inputs else seen
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Whole:
    """One linear layer before it is dealt out; codes are [out, in], of AWQ not yet packed."""

    codes: torch.Tensor
    scalars: dict[str, torch.Tensor]
    row_scales: torch.Tensor | None = None
    prequant: torch.Tensor | None = None

    def tensors(self, rows: torch.Tensor, columns: slice, *, packed: bool) -> dict[str, torch.Tensor]:
        codes = (
            self.codes.view(torch.uint8)[rows][:, columns] if self.codes.itemsize == 1 else self.codes[rows][:, columns]
        )
        codes = codes.view(self.codes.dtype)
        found = {"weight": codes, **self.scalars}
        if packed:
            pairs = codes.view(torch.uint8).reshape(len(codes) // 2, 2, -1)
            found["weight"] = ((pairs[:, 0] % 16) + (pairs[:, 1] % 16) * 16).view(torch.int8)
        if self.row_scales is not None:
            scales = self.row_scales[rows]
            groups = slice(columns.start // GROUP, columns.stop // GROUP)
            found["weights_scaling_factor"] = scales[:, groups] if scales.ndim == 2 else scales
        if self.prequant is not None:
            found["prequant_scaling_factor"] = self.prequant[columns]
        return {name: tensor.clone().contiguous() for name, tensor in found.items()}


class Writer:
    """Quantises a checkpoint once; writes it for any tp and pp."""

    def __init__(self, checkpoint: Checkpoint, form: Format, observed: Observed) -> None:
        self._checkpoint, self._form, self._observed = checkpoint, form, observed
        self._decoder = checkpoint.config.decoder
        self._linears = {
            (layer, name): self._quantise(layer, name) for layer in range(self._decoder.num_layers) for name in SOURCES
        }

    def write(self, directory: Path, *, tp: int, pp: int = 1) -> Path:
        directory.mkdir(parents=True)
        for index in range(tp * pp):
            save_file(self._rank(index % tp, tp, index // tp, pp), directory / f"rank{index}.safetensors")
        (directory / "config.json").write_text(json.dumps(self._config(tp, pp)))
        return directory

    def _read(self, name: str) -> torch.Tensor:
        return self._checkpoint.read(f"language_model.{name}", self._form.dtype)

    def _quantise(self, layer: int, name: str) -> Whole:
        prefix = f"model.layers.{layer}."
        weight = torch.cat([self._read(f"{prefix}{source}.weight") for source in SOURCES[name]])
        partner = weight
        if name in ("mlp.fc", "mlp.gate"):
            partner = torch.cat([self._read(f"{prefix}{part}.weight") for part in ("mlp.gate_proj", "mlp.up_proj")])
        seen = self._observed.inputs[f"language_model.{prefix}{SOURCES[name][0]}.weight"]
        smooth = (partner.float().abs().amax(0) / seen).sqrt().to(self._form.dtype)
        match self._form.algo:
            case "FP8":
                scale = partner.float().abs().max() / 448
                codes = (weight.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
                return Whole(codes, {**_one("activation", seen.max() / 448), **_one("weights", scale)})
            case "W8A8_SQ_PER_CHANNEL":
                smoothed = weight.float() / smooth.float()
                scale = smoothed.abs().amax(1) / 127
                codes = (smoothed / scale[:, None]).round().to(torch.int8)
                return Whole(codes, _one("activation", (seen * smooth.float()).max() / 127), scale, smooth)
            case "W4A16_AWQ":
                groups = (weight.float() / smooth.float()).reshape(len(weight), -1, GROUP)
                scale = (groups.abs().amax(2) / 7).to(self._form.dtype)
                codes = (groups / scale.float()[:, :, None]).round().clamp(-8, 7).to(torch.int8)
                return Whole(codes.reshape(weight.shape), {}, scale, smooth)
            case _:
                return Whole(weight, {})

    def _rank(self, place: int, tp: int, stage: int, pp: int) -> dict[str, torch.Tensor]:
        stages = torch.arange(self._decoder.num_layers).tensor_split(pp)
        tensors: dict[str, torch.Tensor] = {}
        if stage == 0:
            tensors["transformer.vocab_embedding.weight"] = self._read("model.embed_tokens.weight")
        for local, layer in enumerate(stages[stage].tolist()):
            tensors |= {
                f"transformer.layers.{local}.{key}": each for key, each in self._layer(layer, place, tp).items()
            }
        if stage == pp - 1:
            tensors["transformer.ln_f.weight"] = self._read("model.norm.weight")
            head = self._read("lm_head.weight")
            tensors["lm_head.weight"] = F.pad(head, (0, 0, 0, -len(head) % tp)).chunk(tp)[place].clone()
        return tensors

    def _layer(self, layer: int, place: int, tp: int) -> dict[str, torch.Tensor]:
        decoder, prefix = self._decoder, f"model.layers.{layer}."
        heads = torch.arange(decoder.num_heads).chunk(tp)[place]
        kv_heads = torch.arange(decoder.num_kv_heads)
        if tp > decoder.num_kv_heads:
            kv_heads = kv_heads.repeat_interleave(tp // decoder.num_kv_heads)
        keys = decoder.num_heads + kv_heads.chunk(tp)[place]
        qkv = torch.cat([heads, keys, keys + decoder.num_kv_heads])
        qkv = (qkv[:, None] * decoder.head_dim + torch.arange(decoder.head_dim)).flatten()
        wide = torch.arange(decoder.intermediate_size).chunk(tp)[place]
        rows = {"attention.qkv": qkv, "mlp.fc": wide, "mlp.gate": wide}
        found = {
            "input_layernorm.weight": self._read(f"{prefix}input_layernorm.weight"),
            "post_layernorm.weight": self._read(f"{prefix}post_attention_layernorm.weight"),
            "attention.qkv.bias": torch.cat([self._read(f"{prefix}self_attn.{part}_proj.bias") for part in "qkv"])[qkv],
        }
        if self._form.kv is not None:
            largest = 448 if self._form.kv == "FP8" else 127
            found["attention.kv_cache_scaling_factor"] = torch.tensor([self._observed.kv[layer] / largest])
        for name in SOURCES:
            whole = self._linears[layer, name]
            outputs, inputs = whole.codes.shape
            share = inputs // tp if name in SPLIT_BY_COLUMNS else inputs
            first = place * share if name in SPLIT_BY_COLUMNS else 0
            part = whole.tensors(
                rows.get(name, torch.arange(outputs)),
                slice(first, first + share),
                packed=self._form.algo == "W4A16_AWQ",
            )
            found |= {f"{name}.{suffix}": tensor for suffix, tensor in part.items()}
        return found

    def _config(self, tp: int, pp: int) -> dict[str, object]:
        decoder = self._decoder
        quantization: dict[str, object] = {"quant_algo": self._form.algo, "kv_cache_quant_algo": self._form.kv}
        if self._form.algo == "W4A16_AWQ":
            quantization |= {"group_size": GROUP, "has_zero_point": False, "pre_quant_scale": True}
        return {
            "architecture": "Qwen2ForCausalLM",
            "qwen_type": "qwen2",
            "dtype": str(self._form.dtype).removeprefix("torch."),
            "hidden_size": decoder.hidden_size,
            "intermediate_size": decoder.intermediate_size,
            "num_hidden_layers": decoder.num_layers,
            "num_attention_heads": decoder.num_heads,
            "num_key_value_heads": decoder.num_kv_heads,
            "head_size": decoder.head_dim,
            "vocab_size": decoder.vocab_size,
            "hidden_act": "silu",
            "norm_epsilon": decoder.rms_norm_eps,
            "position_embedding_type": "rope_gpt_neox",
            "rotary_base": decoder.rope_theta,
            "max_position_embeddings": decoder.max_position_embeddings,
            "mapping": {"world_size": tp * pp, "tp_size": tp, "pp_size": pp},
            "quantization": quantization,
        }


def _one(name: str, scale: torch.Tensor) -> dict[str, torch.Tensor]:
    return {f"{name}_scaling_factor": scale.float().reshape(1)}

"""Writes checkpoints in the layout of the release: names, shapes, mixed dtypes, dummy heads, shards, index, config."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nvlm_trt.errors import DoesNotFitError, UserError
from nvlm_trt.model.checkpoint import INDEX_NAME, SINGLE_NAME
from nvlm_trt.model.config import NvlmConfig
from nvlm_trt.model.mini_tokenizer import write_tokenizer
from nvlm_trt.model.safetensors_stream import SafetensorsStream, TensorSpec
from nvlm_trt.model.tensors import Shape, decoder_tensors, projector_tensors, vision_tensors
from nvlm_trt.progress import Progress

if TYPE_CHECKING:
    import torch

F32_PARTS = ("q_proj.", "k_proj.", "v_proj.", "attn.qkv.", "attn.proj.weight", "q_norm.", "k_norm.")
"""Parts of the names of tensors that the release stores in float32; all others are bfloat16."""


@dataclass(frozen=True, slots=True)
class ReleaseSpec:
    """What to make: a configuration, dummy heads in the vision encoder, and the most bytes of tensors in a shard.

    A `max_shard_bytes` of None makes a single model.safetensors without an index.
    """

    config: NvlmConfig
    dummy_heads: int
    max_shard_bytes: int | None


def write_release(
    out: Path,
    spec: ReleaseSpec,
    values: Callable[[TensorSpec], Iterable[torch.Tensor]],
    merges: str,
    *,
    progress: Progress | None = None,
) -> None:
    """Write a checkpoint directory in the layout of the release.

    Args:
        out: The directory to make; nothing may be there. It appears whole, by renaming.
        spec: Configuration, dummy heads and shard size.
        values: The values of a tensor, in blocks of whole rows.
        merges: The tokenizer's merges.txt.
        progress: Told the bytes written.

    Raises:
        UserError: there is something at `out`, or its folder cannot be written.
        DoesNotFitError: the disk has too little room.
    """
    specs = _tensor_specs(spec)
    needed = sum(tensor.nbytes for tensor in specs)
    partial = out.with_name(f".{out.name}.partial")
    try:
        if out.exists():
            fix = "remove it or name another directory"
            raise UserError("there is something at the output already", seen=out, fix=fix)
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
        if free < needed * 1.01:
            fault = "the disk is too small for the checkpoint"
            raise DoesNotFitError(fault, seen=f"{free} bytes free", expected=needed)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    except OSError as error:
        raise UserError(f"the checkpoint cannot be written ({error.strerror})", seen=out) from None
    try:
        _write_weights(partial, spec, specs, values, progress or (lambda done, total: None))
        config = json.dumps(release_config(spec.config), indent=2) + "\n"
        (partial / "config.json").write_text(config, encoding="utf-8")
        write_tokenizer(partial, merges)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def release_config(config: NvlmConfig) -> dict[str, object]:
    """A config.json with the members of the released one that say something, its traps included.

    The traps: a decoder whose model_type reads "llama", and a rope_scaling that must be ignored up to 32k.
    """
    vision, decoder = config.vision, config.decoder
    return {
        "architectures": ["NVLM_D"],
        "model_type": "NVLM_D",
        "torch_dtype": "bfloat16",
        "downsample_ratio": config.downsample_ratio,
        "dynamic_image_size": True,
        "force_image_size": vision.image_size,
        "max_dynamic_patch": config.max_tiles,
        "min_dynamic_patch": 1,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "chatml",
        "use_thumbnail": config.use_thumbnail,
        "llm_config": {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "llama",
            "attention_bias": True,
            "mlp_bias": False,
            "bos_token_id": 151643,
            "eos_token_id": 151645,
            "hidden_act": "silu",
            "hidden_size": decoder.hidden_size,
            "intermediate_size": decoder.intermediate_size,
            "max_position_embeddings": decoder.max_position_embeddings,
            "num_attention_heads": decoder.num_heads,
            "num_hidden_layers": decoder.num_layers,
            "num_key_value_heads": decoder.num_kv_heads,
            "rms_norm_eps": decoder.rms_norm_eps,
            "rope_scaling": {"factor": 3.0, "type": "dynamic"},
            "rope_theta": decoder.rope_theta,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "vocab_size": decoder.vocab_size,
        },
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "model_type": "intern_vit_6b",
            "hidden_act": "gelu",
            "hidden_size": vision.hidden_size,
            "image_size": vision.image_size,
            "intermediate_size": vision.intermediate_size,
            "layer_norm_eps": vision.layer_norm_eps,
            "norm_type": "rms_norm",
            "num_attention_heads": vision.num_heads,
            "num_channels": 3,
            "num_hidden_layers": vision.num_layers,
            "patch_size": vision.patch_size,
            "qk_normalization": True,
            "qkv_bias": False,
            "torch_dtype": "bfloat16",
        },
    }


def _tensor_specs(spec: ReleaseSpec) -> list[TensorSpec]:
    """All tensors in the release's shard order: embedding and projector, decoder layers, head, vision encoder."""
    decoder = decoder_tensors(spec.config)
    embedding = next(iter(decoder))
    ordered: dict[str, Shape] = {
        embedding: decoder.pop(embedding),
        **projector_tensors(spec.config),
        **decoder,
        **vision_tensors(spec.config, spec.dummy_heads),
    }
    return [
        TensorSpec(name, "F32" if any(part in name for part in F32_PARTS) else "BF16", shape)
        for name, shape in ordered.items()
    ]


def _write_weights(
    directory: Path,
    spec: ReleaseSpec,
    specs: Sequence[TensorSpec],
    values: Callable[[TensorSpec], Iterable[torch.Tensor]],
    progress: Progress,
) -> None:
    shards = list(_split(specs, spec.max_shard_bytes))
    total = sum(tensor.nbytes for tensor in specs)
    done = 0
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = SINGLE_NAME if spec.max_shard_bytes is None else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with SafetensorsStream(directory / file, shard) as stream:
            for tensor in shard:
                for block in values(tensor):
                    stream.write_part(tensor.name, block)
                    done += block.nbytes
                    progress(done, total)
                weight_map[tensor.name] = file
    if spec.max_shard_bytes is not None:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (directory / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _split(specs: Sequence[TensorSpec], max_bytes: int | None) -> Iterator[list[TensorSpec]]:
    """Fill shards in order, wide dtypes first within a shard as the safetensors library writes them."""
    shard: list[TensorSpec] = []
    size = 0
    for tensor in specs:
        if shard and max_bytes is not None and size + tensor.nbytes > max_bytes:
            yield _sorted(shard)
            shard, size = [], 0
        shard.append(tensor)
        size += tensor.nbytes
    yield _sorted(shard)


def _sorted(shard: list[TensorSpec]) -> list[TensorSpec]:
    return sorted(shard, key=lambda tensor: (tensor.dtype != "F32", tensor.name))

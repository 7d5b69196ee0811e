"""Sources and results of a calibration that the tests of quantised conversion share, and numbers of what is stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

from nvlm_trt.decoder.precision import decoder_precision
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.synthetic import tiny_spec, write_synthetic

Array = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int8]

FORMATS = {
    "fp8": decoder_precision("fp8"),
    "fp8-kv16": decoder_precision("fp8", kv_cache="model"),
    "int8_sq": decoder_precision("int8_sq"),
    "int8_sq-kv8": decoder_precision("int8_sq", kv_cache="int8"),
    "int4_awq-g64": decoder_precision("int4_awq", group_size=64),
    "int4_awq-g128": decoder_precision("int4_awq", group_size=128),
    "int8_wo": decoder_precision("int8_wo"),
    "int4_wo-kv8": decoder_precision("int4_wo", kv_cache="fp8"),
}
MLP = 1088
LINEARS = {"attention.qkv": "qkv", "attention.dense": "dense", "mlp.fc": "fc", "mlp.proj": "proj", "mlp.gate": "fc"}
"""Key in the calibration results by the layer's name."""

SOURCES = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.dense": ("self_attn.o_proj",),
    "mlp.fc": ("mlp.gate_proj",),
    "mlp.proj": ("mlp.down_proj",),
    "mlp.gate": ("mlp.up_proj",),
}


def make_source(directory: Path, **widths: int) -> Checkpoint:
    chosen = {"hidden_size": 512, "intermediate_size": MLP, "decoder_layers": 2, "heads": 8, "kv_heads": 4} | widths
    vision = {"tile_size": 28, "vision_heads": 1, "vision_layers": 1, "dummy_heads": 0}
    write_synthetic(directory, tiny_spec(vocab_size=101, **vision, **chosen))
    return Checkpoint.open(directory)


def rounded(checkpoint: Checkpoint, layer: int, part: str) -> Array:
    """A source matrix as float32 numbers that bfloat16 holds."""
    name = f"language_model.model.layers.{layer}.{part}.weight"
    return checkpoint.read(name, torch.bfloat16).float().numpy()


def write_results(folder: Path, checkpoint: Checkpoint) -> Path:
    """Results of a calibration: true maxima of the weights, all else random."""
    folder.mkdir()
    random = torch.Generator().manual_seed(7)
    groups = {"qkv": SOURCES["attention.qkv"], "dense": SOURCES["attention.dense"], "proj": SOURCES["mlp.proj"]}
    groups["fc"] = SOURCES["mlp.fc"] + SOURCES["mlp.gate"]
    for layer in range(checkpoint.config.decoder.num_layers):
        tensors = {"kv.amax": torch.rand(1, generator=random) * 900}
        for key, parts in groups.items():
            weights = [rounded(checkpoint, layer, part) for part in parts]
            tensors[f"{key}.input_amax"] = torch.rand(1, generator=random) * 20
            tensors[f"{key}.weight_amax"] = torch.tensor([max(np.abs(weight).max() for weight in weights)])
            tensors[f"{key}.prequant"] = torch.exp(torch.randn(weights[0].shape[1], generator=random) / 2)
        save_file(tensors, folder / f"layer_{layer:03d}.safetensors")
    return folder


def unpacked(stored: torch.Tensor) -> Codes:
    """AWQ's codes [out, in] of its bytes [out / 2, in]: the even output is in the low half."""
    numbers = stored.numpy().view(np.uint8)
    codes = np.empty((2 * numbers.shape[0], numbers.shape[1]), dtype=np.int8)
    codes[0::2], codes[1::2] = numbers % 16, numbers // 16
    return np.where(codes > 7, codes - 16, codes)

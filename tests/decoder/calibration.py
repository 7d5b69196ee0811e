"""What the tests of the calibration share: prompts, and what the reference shows of its linear layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own short name
from torch.overrides import TorchFunctionMode

from nvlm_trt.calibration.prompts import CalibrationPrompt, build_prompts
from nvlm_trt.calibration.samples import SHIPPED_SAMPLES, Sample
from nvlm_trt.decoder.calibrate import CalibrationSettings
from nvlm_trt.decoder.calibration_layer import LINEARS
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference import decoder as reference_module
from nvlm_trt.model.reference.decoder import DecoderReference
from nvlm_trt.model.reference.vision import VisionReference
from nvlm_trt.model.tensors import decoder_layer
from nvlm_trt.model.tokenizer import NvlmTokenizer

SETTINGS = CalibrationSettings(device="cpu", rows=64, alpha_step=0.25)

Seen = dict[tuple[int, str], list[torch.Tensor]]
"""Inputs by layer and name, sample after sample."""


def make_prompts(checkpoint: Checkpoint, *, images: bool = True) -> list[CalibrationPrompt]:
    """Four short samples, two of them with photographs."""
    folder = SHIPPED_SAMPLES.parent / "images"
    pictures = [(folder / "coffee.jpg",), (folder / "cat.jpg", folder / "invoice.jpg")] if images else [(), ()]
    samples = [
        Sample("a", None, (), "What is in the cup?", "Coffee.", pictures[0]),
        Sample("b", "Be brief.", (("Hi", "Hello"),), "Wie spät ist es? 几点了", None, ()),
        Sample("c", None, (), "Compare.", "One is drawn.", pictures[1]),
        Sample("d", None, (), "x", None, ()),
    ]
    tokenizer = NvlmTokenizer.load(checkpoint.path)
    return build_prompts(samples, tokenizer, checkpoint.config, max_tokens=120, max_tiles=2)


class _LinearInputs(TorchFunctionMode):
    """Records the input of every F.linear whose weight is one of the reference's."""

    def __init__(self, names: dict[int, tuple[int, str]], seen: Seen) -> None:
        super().__init__()
        self._names, self._seen = names, seen

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is F.linear and id(args[1]) in self._names:
            self._seen[self._names[id(args[1])]].append(args[0].clone())
        return func(*args, **(kwargs or {}))


@contextmanager
def _rotated(seen: list[torch.Tensor]) -> Iterator[None]:
    """Records what RoPE gives, of queries and keys in turn."""
    rotate = reference_module.rotate

    def recorded(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        result = rotate(x, cos, sin)
        seen.append(result)
        return result

    reference_module.rotate = recorded
    try:
        yield
    finally:
        reference_module.rotate = rotate


def reference_inputs(checkpoint: Checkpoint, prompts: list[CalibrationPrompt], dtype: torch.dtype) -> Seen:
    """What hooks see when the whole reference runs: inputs of qkv, dense, fc, proj; k, rotated k and v as kv."""
    vision, reference = VisionReference(checkpoint, dtype), DecoderReference(checkpoint, dtype)
    decoder = checkpoint.config.decoder
    names = {
        id(reference._weights[f"{decoder_layer(index)}{weights[0]}"]): (index, name)
        for index in range(decoder.num_layers)
        for name, weights in LINEARS.items()
    }
    seen: Seen = defaultdict(list)
    for prompt in prompts:
        rotated: list[torch.Tensor] = []
        table = torch.cat([vision(tile[None])[0] for tile in prompt.tiles()]) if prompt.num_tiles else None
        with _LinearInputs(names, seen), _rotated(rotated):
            reference.logits(prompt.ids, table)
        for index in range(decoder.num_layers):
            x, prefix = seen[index, "qkv"][-1], f"{decoder_layer(index)}self_attn."
            plain = [
                F.linear(
                    x,
                    reference._weights[f"{prefix}{part}_proj.weight"],
                    reference._weights[f"{prefix}{part}_proj.bias"],
                )
                for part in "kv"
            ]
            seen[index, "kv"] += [plain[0].flatten(), plain[1].flatten(), rotated[2 * index + 1].flatten()]
    return seen

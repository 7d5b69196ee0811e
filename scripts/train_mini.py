#!/usr/bin/env python
"""Train nvlm-d-mini, the miniature of NVLM-D that ships with this project, from nothing, on the project's own pictures.

    python scripts/train_mini.py --work DIR           # all phases; stopped at any time, it goes on where it was
    python scripts/train_mini.py --work DIR --until projector
    python scripts/train_mini.py --work DIR --further CHECKPOINT    # goes on from a miniature that is finished
    python scripts/train_mini.py --work DIR --further CHECKPOINT --encoder-stays    # and lets only its readers learn

Phases, as in section 4 of arXiv 2409.11402 with a vision encoder and a language model that first have to be made:

    tokenizer   merges learned on the project's questions
    pictures    tiles with labels of every patch, rendered once
    vision      the encoder learns, through heads that are thrown away, what every patch shows; frozen ever after
    text        the decoder learns the template, sums and copying
    projector   the projector alone, decoder and encoder frozen
    reading     decoder and projector, on pictures of one tile
    together    decoder and projector, on pictures of up to six tiles
    export      a checkpoint in the release's layout: names, F32 and BF16, dummy heads, shards, index, tokenizer

A finished miniature goes on with new heads to its encoder (`heads`), the encoder through them (`vision-further`), and
what reads it (`together-further`).

State lies in DIR as safetensors, curves as log.jsonl and curves.png. Weights are in float32, products in bfloat16
where the device has such products, else in float32. A GPU is used where there is one, or what --device names.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own short name
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nvlm_trt.errors import UserError
from nvlm_trt.miniature.assets import Split
from nvlm_trt.miniature.conversations import Conversation, batches
from nvlm_trt.miniature.labels import CHARACTERS, COLOUR_NAMES, PLACES, SHAPE_NAMES, SLOTS, label
from nvlm_trt.miniature.scenes import (
    ONE_TILE_SCENES,
    SCENES,
    SEEN,
    Scene,
    Shares,
    arithmetic,
    chart,
    compare,
    copying,
    follow_up,
    loose,
    objects,
    signs,
    tiny,
)
from nvlm_trt.miniature.vocabulary import learn_merges
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.config import DecoderConfig, NvlmConfig, VisionConfig
from nvlm_trt.model.mini_tokenizer import tokenizer_size, write_tokenizer
from nvlm_trt.model.reference.decoder import rope_table, rotate
from nvlm_trt.model.reference.vision import PROJECTOR_NORM_EPS, normalise, pixel_shuffle
from nvlm_trt.model.release import ReleaseSpec, write_release
from nvlm_trt.model.safetensors_stream import TensorSpec, torch_dtype
from nvlm_trt.model.tensors import (
    DECODER_EMBEDDING,
    DECODER_HEAD,
    DECODER_NORM,
    PROJECTOR_PREFIX,
    VISION_PREFIX,
    decoder_layer,
    decoder_tensors,
    projector_tensors,
    vision_layer,
    vision_tensors,
)
from nvlm_trt.model.tokenizer import NvlmTokenizer

Weights = Mapping[str, torch.Tensor]
Batch = Mapping[str, torch.Tensor]

CONFIG = NvlmConfig(
    vision=VisionConfig(256, 1024, 5, 8, image_size=112, patch_size=14, layer_norm_eps=1e-6),
    decoder=DecoderConfig(256, 768, 4, 8, 4, 640, rms_norm_eps=1e-6, rope_theta=1e6, max_position_embeddings=32768),
    downsample_ratio=0.5,
    max_tiles=6,
    use_thumbnail=True,
)
DUMMY_HEADS = 2
MAX_MERGES = 700
SHARDS, SHARD_SCENES = 4, 9000
HEADS = {
    "characters": 1 + len(CHARACTERS),
    "ordinals": 1 + PLACES,
    "text_colours": 1 + len(COLOUR_NAMES),
    "shapes": 1 + len(SHAPE_NAMES),
    "object_colours": 1 + len(COLOUR_NAMES),
}
"""Classes of the heads that the encoder is trained through, 0 being nothing."""
NOTHING_KEPT = 0.2
"""Share of the patches that show nothing which count in the loss."""
TEXT_ALONE: Shares = ((arithmetic, 0.6), (copying, 0.4))
SAVE_EVERY, LOG_EVERY = 250, 50
HELD_OUT = 4
"""Batches of the validation split that are looked at with every state."""
HELD_OUT_SEED = 10_000
"""Added to a phase's seed for these: with its own, some of them would be what it learned from."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase of training.

    Attributes:
        name: Of its state and in the log.
        steps: How many.
        rate: AdamW's peak learning rate.
        muon: Muon's peak learning rate, of the matrices in layers. At 0.02 the decoder unlearned to copy and learned
            nothing else: a conversation has few tokens of answers, and Muon's steps are as long however noisy they are.
        batch: Tiles (vision) or conversations a step.
        seed: Of its data.
        learns: Parts of the model, of `parts`; with the heads among them the data are tiles.
        scenes: What its conversations are about.
    """

    name: str
    steps: int
    rate: float
    muon: float
    batch: int
    seed: int
    learns: tuple[str, ...]
    scenes: Shares = ()


PHASES = (
    Phase("vision", 9000, 1e-3, 0.02, 64, 1, ("encoder", "heads")),
    Phase("text", 400, 1e-3, 0.02, 48, 2, ("decoder",), TEXT_ALONE),
    Phase("projector", 300, 1e-3, 0.0, 24, 3, ("projector",), SCENES),
    Phase("reading", 3000, 1e-3, 0.004, 32, 4, ("decoder", "projector"), ONE_TILE_SCENES),
    Phase("together", 3000, 1e-3, 0.004, 24, 5, ("decoder", "projector"), SCENES),
)
WORST_MORE: Shares = (
    (loose, 0.24),
    (objects, 0.16),
    (signs, 0.26),
    (tiny, 0.12),
    (chart, 0.1),
    (compare, 0.05),
    (follow_up, 0.04),
    (arithmetic, 0.02),
    (copying, 0.01),
)
"""What a finished miniature answers worst comes more often."""
FURTHER = (
    Phase("heads", 200, 2e-3, 0.0, 64, 6, ("heads",)),
    Phase("vision-further", 5500, 7e-4, 0.014, 64, 7, ("encoder", "heads")),
    Phase("together-further", 2800, 1e-3, 0.004, 24, 8, ("decoder", "projector"), WORST_MORE),
)
"""After a finished training: its encoder's heads were thrown away."""


# The model, batched: the same products as nvlm_trt.model.reference, which the tests compare it with.


def encode(weights: Weights, tiles: torch.Tensor) -> torch.Tensor:
    """Pixels [n, 3, s, s] to pixel-shuffled patches [n, tokens_per_tile, projector_in]; no dummy heads."""
    vision, side = CONFIG.vision, CONFIG.vision.patches_per_side
    count, patch, hidden = len(tiles), vision.patch_size, vision.hidden_size
    patches = tiles.reshape(count, 3, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5).reshape(count, side**2, -1)
    names = f"{VISION_PREFIX}embeddings."
    kernel = weights[f"{names}patch_embedding.weight"].reshape(hidden, -1)
    x = F.linear(patches, kernel, weights[f"{names}patch_embedding.bias"])
    x = torch.cat([weights[f"{names}class_embedding"].expand(count, 1, hidden), x], dim=1)
    x = x + weights[f"{names}position_embedding"]
    for index in range(vision.num_layers):
        x = _vision_block(weights, vision_layer(index), x)
    return pixel_shuffle(x[:, 1:], CONFIG.shuffle)


def _vision_block(weights: Weights, layer: str, x: torch.Tensor) -> torch.Tensor:
    vision, (count, length, hidden) = CONFIG.vision, x.shape
    normed = F.rms_norm(x, (hidden,), weights[f"{layer}norm1.weight"], vision.layer_norm_eps)
    q, k, v = F.linear(normed, weights[f"{layer}attn.qkv.weight"]).chunk(3, dim=-1)
    q = F.rms_norm(q, (hidden,), weights[f"{layer}attn.q_norm.weight"], vision.layer_norm_eps)
    k = F.rms_norm(k, (hidden,), weights[f"{layer}attn.k_norm.weight"], vision.layer_norm_eps)
    q, k, v = (part.view(count, length, -1, vision.head_dim).transpose(1, 2) for part in (q, k, v))
    # plain products: the fused attention's backward is several times slower on short sequences on CPUs
    mixed = ((q * vision.head_dim**-0.5) @ k.transpose(-1, -2)).softmax(dim=-1) @ v
    mixed = mixed.transpose(1, 2).reshape(count, length, hidden)
    back = F.linear(mixed, weights[f"{layer}attn.proj.weight"], weights[f"{layer}attn.proj.bias"])
    x = torch.addcmul(x, back, weights[f"{layer}ls1"])
    normed = F.rms_norm(x, (hidden,), weights[f"{layer}norm2.weight"], vision.layer_norm_eps)
    wide = F.gelu(F.linear(normed, weights[f"{layer}mlp.fc1.weight"], weights[f"{layer}mlp.fc1.bias"]))
    back = F.linear(wide, weights[f"{layer}mlp.fc2.weight"], weights[f"{layer}mlp.fc2.bias"])
    return torch.addcmul(x, back, weights[f"{layer}ls2"])


def project(weights: Weights, shuffled: torch.Tensor) -> torch.Tensor:
    """Pixel-shuffled patches to rows of the prompt table: [n, tokens_per_tile, decoder hidden size]."""
    scale, shift = weights[f"{PROJECTOR_PREFIX}0.weight"], weights[f"{PROJECTOR_PREFIX}0.bias"]
    normed = F.layer_norm(shuffled, (CONFIG.projector_in,), scale, shift, PROJECTOR_NORM_EPS)
    return F.linear(
        F.gelu(F.linear(normed, weights[f"{PROJECTOR_PREFIX}1.weight"])), weights[f"{PROJECTOR_PREFIX}3.weight"]
    )


def decode(weights: Weights, x: torch.Tensor) -> torch.Tensor:
    """Embedded sequences [n, t, hidden], padded on the right, to normalised hidden states of the same shape."""
    decoder, (count, length, hidden) = CONFIG.decoder, x.shape
    cos, sin = (part.to(x.device) for part in rope_table(decoder.head_dim, decoder.rope_theta, 0, length, x.dtype))
    future = torch.full((length, length), float("-inf"), dtype=x.dtype, device=x.device).triu(1)
    for index in range(decoder.num_layers):
        layer = decoder_layer(index)
        names = f"{layer}self_attn."
        normed = F.rms_norm(x, (hidden,), weights[f"{layer}input_layernorm.weight"], decoder.rms_norm_eps)
        q, k, v = (
            F.linear(normed, weights[f"{names}{part}_proj.weight"], weights[f"{names}{part}_proj.bias"])
            .view(count, length, -1, decoder.head_dim)
            .transpose(1, 2)
            for part in "qkv"
        )
        q, k = rotate(q, cos, sin) * decoder.head_dim**-0.5, rotate(k, cos, sin)
        group = decoder.num_heads // decoder.num_kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        mixed = (q @ k.transpose(-1, -2) + future).softmax(dim=-1) @ v
        x = x + F.linear(mixed.transpose(1, 2).reshape(count, length, -1), weights[f"{names}o_proj.weight"])
        normed = F.rms_norm(x, (hidden,), weights[f"{layer}post_attention_layernorm.weight"], decoder.rms_norm_eps)
        gate = F.silu(F.linear(normed, weights[f"{layer}mlp.gate_proj.weight"]))
        wide = gate * F.linear(normed, weights[f"{layer}mlp.up_proj.weight"])
        x = x + F.linear(wide, weights[f"{layer}mlp.down_proj.weight"])
    return F.rms_norm(x, (hidden,), weights[DECODER_NORM], decoder.rms_norm_eps)


def initial(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """First values: norms 1, LayerScale 1/2, biases 0, ids 0.02, positions waves, matrices 1 / sqrt(inputs)."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        if name.endswith(("ls1", "ls2")):
            value = torch.full(shape, 0.5)
        elif name.endswith("bias"):
            value = torch.zeros(shape)
        elif "norm" in name or name == f"{PROJECTOR_PREFIX}0.weight":
            value = torch.ones(shape)
        elif name.endswith("position_embedding"):
            value = waves(CONFIG.vision.patches_per_side, CONFIG.vision.hidden_size)
        else:
            small = name.endswith(("class_embedding", "embed_tokens.weight"))
            value = torch.randn(shape, generator=generator) * (0.02 if small else math.prod(shape[1:]) ** -0.5)
        weights[name] = value
    return weights


def waves(side: int, width: int) -> torch.Tensor:
    """Sines and cosines of a patch's column and row, zeros for the class token: [1, 1 + side * side, width].

    From small random values a patch learns to look at its neighbours several times later.
    """
    quarter = width // 4
    angles = torch.arange(side)[:, None] * math.pi / 2 / 20.0 ** (torch.arange(quarter) / quarter)
    along = torch.cat([angles.sin(), angles.cos()], dim=1)
    grid = torch.cat([along[:, None].expand(side, side, -1), along[None].expand(side, side, -1)], dim=-1)
    return torch.cat([torch.zeros(1, width), grid.reshape(side * side, width)])[None]


# Losses. Each gets weights in the type of the products and a batch, and gives the loss and figures for the log.


def vision_loss(weights: Weights, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
    """Cross-entropy of what every patch shows; of the patches that show nothing a share counts."""
    generator, of_products = torch.Generator().manual_seed(int(batch["step"])), _options(weights)
    device = of_products["device"]
    features = encode(weights, normalise(batch["tiles"].numpy()).to(**of_products))
    features = F.layer_norm(features, features.shape[-1:])
    loss, figures = torch.zeros((), device=device), {}
    for name, classes in HEADS.items():
        logits = F.linear(features, weights[f"head.{name}.weight"], weights[f"head.{name}.bias"])
        wanted = _as_tokens(batch[name].long()).flatten()
        counted = (wanted > 0) | ((wanted == 0) & (torch.rand(wanted.shape, generator=generator) < NOTHING_KEPT))
        logits, wanted = logits.reshape(-1, classes)[counted.to(device)].float(), wanted[counted].to(device)
        loss = loss + F.cross_entropy(logits, wanted) * (2 if name == "characters" else 1)
        right, there = logits.argmax(dim=-1) == wanted, wanted > 0
        figures[name] = float((right & there).sum() / there.sum().clamp(min=1))
        figures[f"{name}_false"] = float((~right & ~there).sum() / (~there).sum().clamp(min=1))
    return loss, figures


def _as_tokens(labels: torch.Tensor) -> torch.Tensor:
    """Labels of patches [n, p, p, ...] in the order of pixel-shuffled tokens: [n, tokens, 4, ...]."""
    count, side, _, *rest = labels.shape
    flat = labels.reshape(count, side * side, -1)
    return pixel_shuffle(flat, CONFIG.shuffle).reshape(count, -1, CONFIG.shuffle**2, *rest)


def answer_loss(weights: Weights, batch: list[Conversation]) -> tuple[torch.Tensor, dict[str, float]]:
    """Cross-entropy of the tokens of all answers."""
    longest = _rounded(max(len(each.ids) for each in batch))
    ids, learned = (
        torch.zeros(len(batch), longest, dtype=torch.long),
        torch.zeros(len(batch), longest, dtype=torch.bool),
    )
    for row, each in enumerate(batch):
        ids[row, : len(each.ids)] = torch.from_numpy(each.ids)
        learned[row, : len(each.ids)] = torch.from_numpy(each.answers)
    of_products = _options(weights)
    ids, learned = ids.to(of_products["device"]), learned.to(of_products["device"])
    visual = ids >= CONFIG.decoder.vocab_size
    x = F.embedding(ids.masked_fill(visual, 0), weights[DECODER_EMBEDDING])
    if bool(visual.any()):
        tiles = np.concatenate([each.tiles for each in batch])
        padded = F.pad(normalise(tiles), (0, 0) * 3 + (0, _rounded(len(tiles)) - len(tiles))).to(**of_products)
        with torch.no_grad():
            features = torch.cat([encode(weights, part) for part in padded.split(64)])
        x = x.masked_scatter(visual.unsqueeze(-1), project(weights, features)[: len(tiles)])
    before = learned[:, 1:].nonzero(as_tuple=True)
    logits = F.linear(decode(weights, x)[before], weights[DECODER_HEAD]).float()
    wanted = ids[before[0], before[1] + 1]
    right = logits.argmax(dim=-1) == wanted
    return F.cross_entropy(logits, wanted), {"token_accuracy": float(right.float().mean())}


def _rounded(count: int) -> int:
    """Up to a multiple of 16: products of few different shapes are prepared once, which saves a fifth of the time."""
    return -(-count // 16) * 16


def _options(weights: Weights) -> dict[str, Any]:
    """Device and type of the products of these weights."""
    first = next(iter(weights.values()))
    return {"device": first.device, "dtype": first.dtype}


def products_of(device: torch.device) -> torch.dtype:
    """The type of products: bfloat16, but on a CPU without such products, where it takes six times as long."""
    if device.type == "cpu" and not torch.cpu._is_avx512_bf16_supported():
        return torch.float32
    return torch.bfloat16


# Data.


def render(work: Path, split: Split, number: int, scenes: int) -> Path:
    """One shard of labelled tiles, rendered if it is not there: equal numbers give equal bytes."""
    path = work / "pictures" / f"{split}_{number:02d}.safetensors"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds, shares = zip(*SEEN, strict=True)
    parts = []
    for index in range(scenes):
        rng = np.random.default_rng([100 + number, index])
        drawn = kinds[rng.choice(len(kinds), p=shares)](rng, split, CONFIG.tile_size)
        for canvas in getattr(drawn, "pictures", (drawn,)):
            parts.append(label(canvas, CONFIG.tile_size, CONFIG.vision.patch_size))
        if index % 1000 == 999:
            print(f"pictures {split} {number}: {index + 1} of {scenes} scenes", flush=True)
    names = ("tiles", *HEADS)
    beside = path.with_suffix(".partial")
    save_file(
        {name: torch.from_numpy(np.concatenate([getattr(part, name) for part in parts])) for name in names}, beside
    )
    beside.rename(path)
    return path


def shard_batches(files: list[Path], size: int, seed: int, first: int) -> Iterator[Batch]:
    """Random tiles, as many of each shard; files stay mapped. Batch i is the same whatever `first` was."""
    shards = [load_file(file) for file in files]
    share = size // len(shards)
    for step in itertools.count(first):
        rng = np.random.default_rng([seed, step])
        parts = []
        for shard in shards:
            rows = torch.from_numpy(rng.choice(len(shard["tiles"]), share, replace=False))
            parts.append({name: values[rows] for name, values in shard.items()})
        yield {"step": torch.tensor(step)} | {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


class Stream(torch.utils.data.IterableDataset[list[Conversation]]):
    """Batches of conversations, rendered in a process of their own."""

    def __init__(self, phase: Phase, first: int, tokenizer: NvlmTokenizer) -> None:
        self._arguments = phase, first, tokenizer

    def __iter__(self) -> Iterator[list[Conversation]]:
        phase, first, tokenizer = self._arguments
        yield from batches(
            phase.seed, first, size=phase.batch, split="train", tokenizer=tokenizer, config=CONFIG, scenes=phase.scenes
        )


# The loop.


def train(
    work: Path,
    phase: Phase,
    weights: dict[str, torch.Tensor],
    learned: list[str],
    loss_of: Callable[[Weights, object], tuple[torch.Tensor, dict[str, float]]],
    data: Callable[[int], Iterator[object]],
    device: torch.device,
    held_out: Sequence[object] = (),
) -> dict[str, torch.Tensor]:
    """Train the weights named in `learned` and return all of them; state is kept in `work` and taken up again.

    With every state that is saved goes a row in the log with the figures of the batches `held_out`.
    """
    state = work / f"{phase.name}.safetensors"
    parameters = {name: weights[name].to(device, copy=True).requires_grad_() for name in learned}
    flat = [name for name in learned if parameters[name].ndim == 2 and ".layers." in name]
    rest = [name for name in learned if name not in set(flat)]
    rates = [(torch.optim.AdamW([parameters[name] for name in rest], betas=(0.9, 0.98), weight_decay=0.01), 1.0)]
    if flat:
        muon = torch.optim.Muon([parameters[name] for name in flat], weight_decay=0.01, adjust_lr_fn="original")
        rates.append((muon, phase.muon / phase.rate))
    made_by = _made_by(phase, weights)
    first = _restore(state, made_by, parameters, rates)
    products = products_of(device)
    frozen = {name: value.to(device, products) for name, value in weights.items() if name not in parameters}
    stream, started, total = data(first), time.monotonic(), {}

    def current() -> Weights:
        return frozen | {name: value.to(products) for name, value in parameters.items()}

    for step in range(first, phase.steps):
        share = min(1.0, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * step / phase.steps))
        for optimiser, factor in rates:
            for group in optimiser.param_groups:
                group["lr"] = phase.rate * factor * max(share, 0.01)
            optimiser.zero_grad()
        loss, figures = loss_of(current(), next(stream))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
        for optimiser, _ in rates:
            optimiser.step()
        _add(total, loss, figures, LOG_EVERY)
        if (step + 1) % LOG_EVERY == 0:
            seconds, started = time.monotonic() - started, time.monotonic()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            _log(work, phase, step + 1, total | {"seconds": seconds, "peak_gb": peak})
            pace = seconds / LOG_EVERY
            print(
                f"{phase.name} {step + 1} of {phase.steps}: loss {total['loss']:.3f}, {pace:.2f} s a step", flush=True
            )
            total = {}
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == phase.steps:
            _save(state, made_by, parameters, rates, step + 1)
            seen: dict[str, float] = {}
            for batch in held_out:
                with torch.no_grad():
                    _add(seen, *loss_of(current(), batch), len(held_out))
            _log(work, phase, step + 1, {f"validation_{name}": value for name, value in seen.items()})
    return weights | {name: value.detach().cpu() for name, value in parameters.items()}


def _add(total: dict[str, float], loss: torch.Tensor, figures: Mapping[str, float], count: int) -> None:
    for name, value in {"loss": float(loss.detach()), **figures}.items():
        total[name] = total.get(name, 0.0) + value / count


def _log(work: Path, phase: Phase, step: int, figures: Mapping[str, float]) -> None:
    if figures:
        row = {"phase": phase.name, "step": step, **{name: round(value, 4) for name, value in figures.items()}}
        with (work / "log.jsonl").open("a") as file:
            print(json.dumps(row), file=file)


def _save(
    path: Path, made_by: str, parameters: Weights, rates: list[tuple[torch.optim.Optimizer, float]], step: int
) -> None:
    """Weights and moments of the optimisers, beside and renamed: a kill leaves the state before or after."""
    tensors = {f"weight {name}": value.detach() for name, value in parameters.items()}
    for name, value in parameters.items():
        for optimiser, _ in rates:
            tensors |= {f"{key} {name}": moment for key, moment in optimiser.state.get(value, {}).items()}
    beside = path.with_suffix(".partial")
    save_file(
        {name: value.contiguous() for name, value in tensors.items()},
        beside,
        {"step": str(step), "made_by": made_by},
    )
    beside.rename(path)


def _made_by(phase: Phase, weights: Weights) -> str:
    """What a state was trained with: the phase, the sizes of the model, and the weights that the phase began with."""
    scenes = ", ".join(f"{share} {_named(scene)}" for scene, share in phase.scenes) or "tiles"
    digest = sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return (
        f"{phase.steps} steps, rates {phase.rate} and {phase.muon}, {phase.batch} of seed {phase.seed}, {scenes}, "
        f"for {' and '.join(phase.learns)}, {CONFIG}, from weights {digest.hexdigest()[:16]}"
    )


def _named(scene: Scene) -> str:
    return f"{scene.func.__name__} {scene.keywords}" if isinstance(scene, partial) else scene.__name__


def _restore(path: Path, made_by: str, parameters: Weights, rates: list[tuple[torch.optim.Optimizer, float]]) -> int:
    """Take up a saved state; the number of steps done.

    Raises:
        UserError: the state is of another training.
    """
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file, torch.no_grad():
        if (seen := file.metadata()["made_by"]) != made_by:
            fix = "name another --work, or remove the state and those of the phases after it"
            raise UserError(f"{path} is the state of another training", seen=seen, expected=made_by, fix=fix)
        for saved in file.keys():  # noqa: SIM118 - no mapping
            key, name = saved.split(" ")
            if key == "weight":
                parameters[name].copy_(file.get_tensor(saved))
                continue
            for optimiser, _ in rates:
                if any(parameters[name] is value for group in optimiser.param_groups for value in group["params"]):
                    moment = file.get_tensor(saved)
                    # AdamW counts its steps on the CPU, whatever the device of its moments
                    optimiser.state[parameters[name]][key] = moment if key == "step" else moment.to(parameters[name])
        return int(file.metadata()["step"])


def main() -> None:
    """Run the phases in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="directory of the state")
    parser.add_argument("--further", type=Path, metavar="CHECKPOINT", help="go on from a miniature that is finished")
    parser.add_argument("--until", help="the last phase to run; default: export")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of the products")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="the checkpoint directory to make; default: WORK/nvlm-d-mini")
    parser.add_argument(
        "--encoder-stays", action="store_true", help="with --further: only what reads the encoder learns"
    )
    parser.add_argument(
        "--round", type=int, default=0, help="with --further: of how many before, so that data are others"
    )
    options = parser.parse_args()
    if (options.encoder_stays or options.round) and not options.further:
        parser.error("--encoder-stays and --round need --further")
    phases = FURTHER if options.further else PHASES
    phases = tuple(replace(phase, seed=phase.seed + 100 * options.round) for phase in phases)
    if options.encoder_stays:
        phases = tuple(phase for phase in phases if "heads" not in phase.learns)
    pictures = () if options.encoder_stays else ("pictures",)
    names = ("tokenizer", *pictures, *(phase.name for phase in phases), "export")
    if options.until not in (None, *names):
        parser.error(f"argument --until: {options.until} is none of {', '.join(names)}")
    torch.set_num_threads(options.threads)
    work, todo = options.work, names[: names.index(options.until or "export") + 1]
    work.mkdir(parents=True, exist_ok=True)

    merges = learn_merges(MAX_MERGES)
    assert tokenizer_size(merges) <= CONFIG.decoder.vocab_size
    write_tokenizer(work, merges)
    tokenizer = NvlmTokenizer.load(work)
    weights = initial(parts("encoder", "heads"), 11) | initial(parts("decoder", "projector"), 13)
    if options.further:
        weights |= finished(options.further)
    files = []
    if "pictures" in todo:
        with ProcessPoolExecutor(options.threads) as pool:
            files = list(pool.map(partial(render, work, "train", scenes=SHARD_SCENES), range(SHARDS)))

    def data(phase: Phase, first: int) -> Iterator[object]:
        if "heads" in phase.learns:
            return shard_batches(files, phase.batch, phase.seed, first)
        stream = Stream(phase, first, tokenizer)
        return iter(torch.utils.data.DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=8))

    for phase in phases:
        if phase.name in todo:
            loss = vision_loss if "heads" in phase.learns else answer_loss
            validation = held_out(phase, tokenizer) if phase.scenes else ()
            learned = list(parts(*phase.learns))
            weights = train(work, phase, weights, learned, loss, partial(data, phase), options.device, validation)
    if "export" in todo:
        plot(work, phases)  # first: an export is not made twice
        export(options.output or work / "nvlm-d-mini", weights, merges)


def parts(*names: str) -> dict[str, tuple[int, ...]]:
    """Tensors of parts of the model, without dummy heads, and their shapes."""
    heads = {}
    for name, classes in HEADS.items():
        slots = SLOTS if name in ("characters", "ordinals") else 1
        heads |= {f"head.{name}.weight": (classes * slots * CONFIG.shuffle**2, CONFIG.projector_in)}
        heads |= {f"head.{name}.bias": (classes * slots * CONFIG.shuffle**2,)}
    known = {
        "encoder": vision_tensors(CONFIG, 0),
        "heads": heads,
        "decoder": decoder_tensors(CONFIG),
        "projector": projector_tensors(CONFIG),
    }
    return {tensor: shape for name in names for tensor, shape in known[name].items()}


def held_out(phase: Phase, tokenizer: NvlmTokenizer) -> list[list[Conversation]]:
    """Batches of the validation split, of what a phase is about."""
    seed = phase.seed + HELD_OUT_SEED
    stream = batches(seed, 0, size=32, split="validation", tokenizer=tokenizer, config=CONFIG, scenes=phase.scenes)
    return list(itertools.islice(stream, HELD_OUT))


def finished(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The weights of a miniature that was exported, in float32, without its dummy heads.

    Raises:
        UserError: it is none, or of other sizes.
    """
    opened = Checkpoint.open(checkpoint)
    if opened.config != CONFIG:
        raise UserError(f"{checkpoint} is of another model", seen=str(opened.config), expected=str(CONFIG))
    return {
        name: unpadded(name, opened.read(name, torch.float32), shape)
        for name, shape in parts("encoder", "decoder", "projector").items()
    }


def export(out: Path, weights: Weights, merges: str) -> None:
    """Write the checkpoint: dummy heads appended as zeros, dtypes and shards of the release."""
    spec = ReleaseSpec(CONFIG, DUMMY_HEADS, 4_000_000)
    write_release(
        out, spec, lambda tensor: [padded(weights[tensor.name], tensor).to(torch_dtype(tensor.dtype))], merges
    )


def padded(value: torch.Tensor, tensor: TensorSpec) -> torch.Tensor:
    """A tensor of the vision encoder with its dummy heads, zeros behind the real ones (of q, k and v each)."""
    if value.shape == tensor.shape:
        return value
    if tensor.name.endswith("attn.qkv.weight"):
        parts = value.chunk(3)
        return torch.cat([F.pad(part, (0, 0, 0, tensor.shape[0] // 3 - len(part))) for part in parts])
    return F.pad(value, (0, tensor.shape[-1] - value.shape[-1]))


def unpadded(name: str, value: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor without its dummy heads: what `padded` was given."""
    if name.endswith("attn.qkv.weight"):
        return torch.cat([part[: shape[0] // 3] for part in value.chunk(3)])
    return value[tuple(slice(size) for size in shape)]


def plot(work: Path, phases: Sequence[Phase]) -> None:
    """Draw the curves of log.jsonl, one panel a phase, into curves.png; of steps done twice the last ones count."""
    from matplotlib.figure import Figure

    logged = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    figure = Figure(figsize=(4 * len(phases), 3.2), layout="constrained")
    for axes, phase in zip(figure.subplots(1, len(phases), squeeze=False)[0], phases, strict=True):
        drawn: dict[str, dict[int, float]] = {}
        for row in logged:
            for key in row.keys() - {"phase", "step"} if row["phase"] == phase.name else ():
                drawn.setdefault(key, {})[row["step"]] = row[key]
        for key, colour in (("loss", "black"), ("validation_loss", "grey")):
            axes.plot(*zip(*sorted(drawn.get(key, {}).items()), strict=True), color=colour, label=key)
        shares = sorted(key for key in drawn if key in HEADS or key.endswith("token_accuracy"))
        axes.set(title=phase.name, xlabel="step", ylabel="loss (nats)", ylim=(0, None))
        right = axes.twinx()
        for key in shares:
            right.plot(*zip(*sorted(drawn[key].items()), strict=True), label=key, linewidth=1)
        right.set(ylabel="share right", ylim=(0, 1))
        right.legend(fontsize=6, loc="center right")
    figure.savefig(work / "curves.png", dpi=110)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"{error}")

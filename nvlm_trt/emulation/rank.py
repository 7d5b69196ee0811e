"""One rank of a converted decoder in torch, reading its own file only, as TensorRT-LLM's Qwen2 classes would run it.

Deliberately independent of the code that cuts the ranks: it knows names and shapes from TensorRT-LLM's model code
(models/qwen/model.py, layers/attention.py, layers/mlp.py, layers/embedding.py) and nothing about sources or pieces, so
that a mistake made in cutting cannot cancel itself. Weights stay in the file's dtype and are widened where they are
used; what is rounded on the way, and where, is said in `arithmetic`. In between TensorRT-LLM computes in the model's
dtype: that rounding is left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own short name

from nvlm_trt.decoder.convert import rank_file
from nvlm_trt.decoder.trtllm_config import TrtllmConfig
from nvlm_trt.decoder.trtllm_layout import Rank, padded_vocab, stage_layers
from nvlm_trt.emulation.arithmetic import COMPUTE, Plain, RankTensors, cached, linear
from nvlm_trt.model.reference.decoder import rope_table, rotate


class Collectives(Protocol):
    """What the ranks say to one another, where TensorRT-LLM has its NCCL plugins."""

    def all_reduce(self, partial: torch.Tensor) -> torch.Tensor:
        """The sum over the tp ranks of this stage (after attention.dense and mlp.proj)."""

    def all_gather(self, part: torch.Tensor) -> torch.Tensor:
        """The parts of the tp ranks side by side on the last dimension (after lm_head)."""

    def receive(self, shape: tuple[int, ...]) -> torch.Tensor:
        """The hidden states from the rank before in the pipeline, float64."""

    def send(self, hidden: torch.Tensor) -> None:
        """Hand the hidden states to the next rank in the pipeline."""


class RankDecoder:
    """The layers, or slices of layers, of one rank.

    Args:
        directory: The TensorRT-LLM checkpoint.
        index: The rank's number.
        collectives: Its line to the others.
        column_blocks: Blocks of columns of dense and proj that have scales of their own where the build quantises
            (W8A16, W4A16). It does so on each rank, so a tp 1 checkpoint computes what tp ranks do with tp blocks.

    Raises:
        CheckpointError: config.json or the rank's file cannot be read, or a tensor is missing, misshapen or mistyped.
    """

    def __init__(self, directory: Path, index: int, collectives: Collectives, *, column_blocks: int = 1) -> None:
        config = TrtllmConfig.read(directory)
        self._decoder = config.decoder
        self._quantization = config.quantization
        self._rank = Rank(config.tp, config.pp, index)
        self._collectives = collectives
        self._column_blocks = column_blocks
        self._queries = self._decoder.num_heads // config.tp * self._decoder.head_dim
        self._keys = max(self._decoder.num_kv_heads // config.tp, 1) * self._decoder.head_dim
        self._wide = self._decoder.intermediate_size // config.tp
        self._layers = len(stage_layers(self._decoder.num_layers, config.pp, self._rank.stage))
        self._tensors = RankTensors(directory / rank_file(index), config.dtype.torch)

    def logits(self, ids: torch.Tensor, table: torch.Tensor | None) -> torch.Tensor | None:
        """Logits of every position of one prompt.

        Args:
            ids: int64 [t]; an id at or above vocab_size takes row ``id - vocab_size`` of the table.
            table: float32 [rows, hidden] prompt table, or None.

        Returns:
            float64 [t, vocab_size] on the ranks of the last stage, None on the others.
        """
        if self._rank.is_first_stage:
            hidden = self._embed(ids, table)
        else:
            hidden = self._collectives.receive((len(ids), self._decoder.hidden_size))
        decoder = self._decoder
        cos, sin = rope_table(decoder.head_dim, decoder.rope_theta, 0, len(ids), COMPUTE)
        for local in range(self._layers):
            layer = f"transformer.layers.{local}."
            hidden = hidden + self._attention(layer, self._norm(hidden, f"{layer}input_layernorm.weight"), cos, sin)
            hidden = hidden + self._mlp(layer, self._norm(hidden, f"{layer}post_layernorm.weight"))
        if not self._rank.is_last_stage:
            self._collectives.send(hidden)
            return None
        rows = padded_vocab(decoder.vocab_size, self._rank.tp) // self._rank.tp
        head = Plain(self._tensors.take("lm_head.weight", rows, decoder.hidden_size))
        part = head(self._norm(hidden, "transformer.ln_f.weight"))
        return self._collectives.all_gather(part)[:, : decoder.vocab_size]

    def _embed(self, ids: torch.Tensor, table: torch.Tensor | None) -> torch.Tensor:
        decoder = self._decoder
        weight = self._tensors.take("transformer.vocab_embedding.weight", decoder.vocab_size, decoder.hidden_size)
        from_table = ids > decoder.vocab_size - 1
        hidden = weight[ids.masked_fill(from_table, decoder.vocab_size - 1)].to(COMPUTE)
        if table is not None and bool(from_table.any()):
            hidden[from_table] = table[ids[from_table] - decoder.vocab_size].to(COMPUTE)
        return hidden

    def _attention(self, layer: str, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        name, sizes = f"{layer}attention.", [self._queries, self._keys, self._keys]
        qkv = self._linear(f"{name}qkv", x, sum(sizes)) + self._tensors.wide(f"{name}qkv.bias", sum(sizes))
        parts = torch.split(qkv, sizes, dim=-1)
        q, k, v = (part.view(len(x), -1, self._decoder.head_dim).transpose(0, 1) for part in parts)
        algo, group = self._quantization.kv_cache_quant_algo, len(q) // len(k)
        scale = None if algo is None else self._tensors.scales(f"{name}kv_cache_scaling_factor", 1)
        k, v = cached(rotate(k, cos, sin), algo, scale), cached(v, algo, scale)
        k, v = k.repeat_interleave(group, dim=0), v.repeat_interleave(group, dim=0)
        mixed = F.scaled_dot_product_attention(rotate(q, cos, sin)[None], k[None], v[None], is_causal=True)[0]
        return self._row_linear(f"{name}dense", mixed.transpose(0, 1).reshape(len(x), self._queries))

    def _mlp(self, layer: str, x: torch.Tensor) -> torch.Tensor:
        fc, gate = (self._linear(f"{layer}mlp.{name}", x, self._wide) for name in ("fc", "gate"))
        return self._row_linear(f"{layer}mlp.proj", F.silu(fc) * gate)

    def _linear(self, name: str, x: torch.Tensor, outputs: int) -> torch.Tensor:
        """A layer whose outputs are split over the ranks."""
        return linear(self._tensors, name, outputs, x.shape[1], self._quantization)(x)

    def _row_linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """A layer whose inputs are split over the ranks, back to the hidden size."""
        outputs, blocks = self._decoder.hidden_size, self._column_blocks
        layer = linear(self._tensors, name, outputs, x.shape[1], self._quantization, column_blocks=blocks)
        return self._collectives.all_reduce(layer(x))

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight = self._tensors.wide(name, self._decoder.hidden_size)
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self._decoder.rms_norm_eps) * weight

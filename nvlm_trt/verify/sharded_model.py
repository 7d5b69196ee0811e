"""One rank of a converted decoder in torch, reading its own file only, as TensorRT-LLM's Qwen2 classes would run it.

Deliberately independent of the code that cuts the ranks: it knows names and shapes from TensorRT-LLM's model code
(models/qwen/model.py, layers/attention.py, layers/mlp.py, layers/embedding.py) and nothing about sources or pieces, so
that a mistake made in cutting cannot cancel itself. Weights stay in the file's dtype and are widened where they are
used: all arithmetic is float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own short name
from safetensors import SafetensorError
from safetensors.torch import load_file

from nvlm_trt.decoder.convert import rank_file
from nvlm_trt.decoder.trtllm_config import TrtllmConfig
from nvlm_trt.decoder.trtllm_layout import Rank, padded_vocab, stage_layers
from nvlm_trt.errors import CheckpointError
from nvlm_trt.model.reference.decoder import rope_table, rotate
from nvlm_trt.model.reference.vision import rms_norm


class Collectives(Protocol):
    """What the ranks say to one another, where TensorRT-LLM has its NCCL plugins."""

    def all_reduce(self, partial: torch.Tensor) -> torch.Tensor:
        """The sum over the tp ranks of this stage (after attention.dense and mlp.proj)."""

    def all_gather(self, part: torch.Tensor) -> torch.Tensor:
        """The parts of the tp ranks side by side on the last dimension (after lm_head)."""

    def receive(self, shape: tuple[int, ...]) -> torch.Tensor:
        """The hidden states from the rank before in the pipeline, float32."""

    def send(self, hidden: torch.Tensor) -> None:
        """Hand the hidden states to the next rank in the pipeline."""


class RankDecoder:
    """The layers, or slices of layers, of one rank.

    Args:
        directory: The TensorRT-LLM checkpoint.
        index: The rank's number.
        collectives: Its line to the others.

    Raises:
        CheckpointError: config.json or the rank's file cannot be read, or a tensor is missing or misshapen.
    """

    def __init__(self, directory: Path, index: int, collectives: Collectives) -> None:
        config = TrtllmConfig.read(directory)
        self._decoder = config.decoder
        self._rank = Rank(config.tp, config.pp, index)
        self._collectives = collectives
        self._heads = self._decoder.num_heads // config.tp
        self._kv_heads = max(self._decoder.num_kv_heads // config.tp, 1)
        self._wide = self._decoder.intermediate_size // config.tp
        self._layers = len(stage_layers(self._decoder.num_layers, config.pp, self._rank.stage))
        try:
            self._tensors = load_file(directory / rank_file(index))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"the rank's file cannot be read ({error})", seen=rank_file(index)) from None

    def logits(self, ids: torch.Tensor, table: torch.Tensor | None) -> torch.Tensor | None:
        """Logits of every position of one prompt.

        Args:
            ids: int64 [t]; an id at or above vocab_size takes row ``id - vocab_size`` of the table.
            table: float32 [rows, hidden] prompt table, or None.

        Returns:
            float32 [t, vocab_size] on the ranks of the last stage, None on the others.
        """
        if self._rank.is_first_stage:
            hidden = self._embed(ids, table)
        else:
            hidden = self._collectives.receive((len(ids), self._decoder.hidden_size))
        decoder = self._decoder
        cos, sin = rope_table(decoder.head_dim, decoder.rope_theta, 0, len(ids), torch.float32)
        for local in range(self._layers):
            layer = f"transformer.layers.{local}."
            hidden = hidden + self._attention(layer, self._norm(hidden, f"{layer}input_layernorm.weight"), cos, sin)
            hidden = hidden + self._mlp(layer, self._norm(hidden, f"{layer}post_layernorm.weight"))
        if not self._rank.is_last_stage:
            self._collectives.send(hidden)
            return None
        rows = padded_vocab(decoder.vocab_size, self._rank.tp) // self._rank.tp
        head = self._take("lm_head.weight", rows, decoder.hidden_size)
        part = F.linear(self._norm(hidden, "transformer.ln_f.weight"), head)
        return self._collectives.all_gather(part)[:, : decoder.vocab_size]

    def _embed(self, ids: torch.Tensor, table: torch.Tensor | None) -> torch.Tensor:
        decoder = self._decoder
        weight = self._raw("transformer.vocab_embedding.weight", decoder.vocab_size, decoder.hidden_size)
        from_table = ids > decoder.vocab_size - 1
        hidden = weight[ids.masked_fill(from_table, decoder.vocab_size - 1)].float()
        if table is not None and bool(from_table.any()):
            hidden[from_table] = table[ids[from_table] - decoder.vocab_size]
        return hidden

    def _attention(self, layer: str, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        head = self._decoder.head_dim
        queries, keys = self._heads * head, self._kv_heads * head
        weight = self._take(f"{layer}attention.qkv.weight", queries + 2 * keys, self._decoder.hidden_size)
        bias = self._take(f"{layer}attention.qkv.bias", queries + 2 * keys)
        parts = torch.split(F.linear(x, weight, bias), [queries, keys, keys], dim=-1)
        q, k, v = (part.view(len(x), -1, head).transpose(0, 1) for part in parts)
        group = self._heads // self._kv_heads
        k, v = (rows.repeat_interleave(group, dim=0) for rows in (rotate(k, cos, sin), v))
        mixed = F.scaled_dot_product_attention(rotate(q, cos, sin)[None], k[None], v[None], is_causal=True)[0]
        dense = self._take(f"{layer}attention.dense.weight", self._decoder.hidden_size, queries)
        return self._collectives.all_reduce(F.linear(mixed.transpose(0, 1).reshape(len(x), queries), dense))

    def _mlp(self, layer: str, x: torch.Tensor) -> torch.Tensor:
        hidden = self._decoder.hidden_size
        activated = F.silu(F.linear(x, self._take(f"{layer}mlp.fc.weight", self._wide, hidden)))
        wide = activated * F.linear(x, self._take(f"{layer}mlp.gate.weight", self._wide, hidden))
        return self._collectives.all_reduce(F.linear(wide, self._take(f"{layer}mlp.proj.weight", hidden, self._wide)))

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return rms_norm(x, self._take(name, self._decoder.hidden_size), self._decoder.rms_norm_eps)

    def _take(self, name: str, *shape: int) -> torch.Tensor:
        return self._raw(name, *shape).float()

    def _raw(self, name: str, *shape: int) -> torch.Tensor:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise CheckpointError("the rank's file lacks a tensor", seen=name)
        if tuple(tensor.shape) != shape:
            raise CheckpointError(f"{name} has another shape", seen=list(tensor.shape), expected=list(shape))
        return tensor

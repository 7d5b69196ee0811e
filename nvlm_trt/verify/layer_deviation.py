"""One layer of a converted decoder, all of its ranks together, against the source's layer on the same inputs.

How ranks share a layer is written here once more, after TensorRT-LLM (layers/linear.py, layers/attention.py), so that
it doesn't share a mistake with the code that cuts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own short name

from nvlm_trt.decoder.calibration_layer import KV
from nvlm_trt.decoder.trtllm_config import TrtllmConfig
from nvlm_trt.emulation.arithmetic import COMPUTE, Linear, Plain, RankTensors, cached, linear
from nvlm_trt.verify.fake_quant import Roundings

CACHE = "attention.kv_cache"
"""What keys and values are called among the linear layers."""

SOURCES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "attention.qkv": ("qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    "attention.dense": ("dense", ("self_attn.o_proj",)),
    "mlp.fc": ("fc", ("mlp.gate_proj",)),
    "mlp.gate": ("fc", ("mlp.up_proj",)),
    "mlp.proj": ("proj", ("mlp.down_proj",)),
}
"""Of every linear layer what DecoderLayer calls its input, and the weights that it is made of."""

NORMS: Mapping[str, str] = {"input_layernorm": "input_layernorm", "post_layernorm": "post_attention_layernorm"}


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far a linear layer of all ranks together, or what comes back from the KV cache, is from the source's.

    Attributes:
        layer: Place in the whole model.
        name: TensorRT-LLM's name in the layer, e.g. "mlp.proj"; CACHE for keys and values.
        error: Of the output that is furthest off, the norm of the difference over all tokens, over the root mean
            square of the norms of all outputs. So a single wrong row shows.
        yardstick: The same for independent rounding to the same precision (see fake_quant); 0 if nothing is rounded.
    """

    layer: int
    name: str
    error: float
    yardstick: float

    @property
    def excess(self) -> float:
        """The error over that of the yardstick, which must not be 0."""
        return self.error / self.yardstick


@dataclass(frozen=True, slots=True)
class SourceLayer:
    """A layer of the source, and what its parts are given.

    Attributes:
        index: Place in the whole model.
        weights: float32 values of the converted dtype, by the rest of their names after the layer's prefix.
        seen: What DecoderLayer showed: inputs [t, in] and, for KV, keys before and after RoPE and values, each
            [kv heads, t, head_dim], of one prompt after the other.
    """

    index: int
    weights: Mapping[str, torch.Tensor]
    seen: Mapping[str, Sequence[torch.Tensor]]

    def weight(self, name: str) -> torch.Tensor:
        """The weight of a linear layer, whole."""
        return torch.cat([self.weights[f"{source}.weight"] for source in SOURCES[name][1]])

    def inputs(self, name: str) -> torch.Tensor:
        """The inputs of a linear layer, all tokens one below the other."""
        return torch.cat(list(self.seen[SOURCES[name][0]]))

    def cache(self) -> torch.Tensor:
        """Keys and values as they enter the cache, [2, kv heads, t, head_dim]."""
        keys, values = (torch.cat(list(self.seen[KV][place::3]), dim=1) for place in (1, 2))
        return torch.stack([keys, values])


@dataclass(frozen=True, slots=True)
class ConvertedLayer:
    """A layer of the converted decoder.

    Attributes:
        config: What config.json says.
        prefix: What names begin with in the files of its stage.
        ranks: The files of the ranks that share it.
    """

    config: TrtllmConfig
    prefix: str
    ranks: Sequence[RankTensors]

    def linear_deviations(self, source: SourceLayer, roundings: Roundings) -> Iterator[Deviation]:
        """One a linear layer."""
        for name in SOURCES:
            weight, x = source.weight(name), source.inputs(name)
            rounded = Plain(roundings.weights(weight))(roundings.inputs(x).to(COMPUTE))
            expected, x = Plain(weight)(x.to(COMPUTE)), x.to(COMPUTE)
            if name == "attention.qkv":
                expected, rounded = self._dealt(expected), self._dealt(rounded)
                seen = self._column_linear(name, x, expected.shape[1] // self.config.tp)
            elif name in ("attention.dense", "mlp.proj"):
                seen = self._row_linear(name, x)
            else:
                seen = self._column_linear(name, x, self.config.decoder.intermediate_size // self.config.tp)
                expected, rounded = (F.pad(each, (0, seen.shape[1] - each.shape[1])) for each in (expected, rounded))
            yield Deviation(source.index, name, output_error(seen, expected), output_error(rounded, expected))

    def cache_deviations(self, source: SourceLayer, roundings: Roundings) -> Iterator[Deviation]:
        """One if the KV cache is quantised."""
        algo = self.config.quantization.kv_cache_quant_algo
        if algo is None:
            return
        heads, scale = self._kv_heads(), f"{self.prefix}attention.kv_cache_scaling_factor"
        entering = source.cache().to(COMPUTE)
        rounded = roundings.cache(source.cache()).to(COMPUTE)
        seen = [
            cached(entering[:, own], algo, rank.scales(scale, 1)) for rank, own in zip(self.ranks, heads, strict=True)
        ]
        parts = (torch.cat(seen, dim=1), entering[:, torch.cat(heads)], rounded[:, torch.cat(heads)])
        ranks, expected, yardstick = (part.permute(2, 0, 1, 3).flatten(1) for part in parts)
        yield Deviation(source.index, CACHE, output_error(ranks, expected), output_error(yardstick, expected))

    def differing(self, source: SourceLayer) -> Iterator[str]:
        """Norms and biases that are no copies of the source's."""
        bias = torch.cat([source.weights[f"{part}.bias"] for part in SOURCES["attention.qkv"][1]])
        wanted: dict[str, Sequence[torch.Tensor]] = {}
        wanted["attention.qkv.bias"] = self._dealt(bias[None])[0].chunk(self.config.tp)
        for name, original in NORMS.items():
            wanted[f"{name}.weight"] = [source.weights[f"{original}.weight"]] * self.config.tp
        for name, copies in wanted.items():
            for place, (rank, copy) in enumerate(zip(self.ranks, copies, strict=True)):
                if not torch.equal(rank.take(f"{self.prefix}{name}", len(copy)).float(), copy):
                    yield f"{name} of layer {source.index} on tp rank {place}"

    def _linear(self, rank: RankTensors, name: str, outputs: int, inputs: int) -> Linear:
        return linear(rank, f"{self.prefix}{name}", outputs, inputs, self.config.quantization)

    def _column_linear(self, name: str, x: torch.Tensor, outputs: int) -> torch.Tensor:
        """A layer whose outputs are split, so many on each rank: the ranks' outputs side by side."""
        return torch.cat([self._linear(rank, name, outputs, x.shape[1])(x) for rank in self.ranks], dim=1)

    def _row_linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """A layer whose inputs are split: the sum of the ranks' outputs, each from its own inputs."""
        width = self.config.decoder.intermediate_size if name == "mlp.proj" else x.shape[1]
        share = width // self.config.tp
        parts = torch.split(F.pad(x, (0, width - x.shape[1])), share, dim=1)
        total = torch.zeros(len(x), self.config.decoder.hidden_size, dtype=COMPUTE)
        for rank, part in zip(self.ranks, parts, strict=True):
            total += self._linear(rank, name, self.config.decoder.hidden_size, share)(part)
        return total

    def _kv_heads(self) -> list[torch.Tensor]:
        """Which kv heads each rank holds: its share, or the one that its query heads look at."""
        tp, count = self.config.tp, self.config.decoder.num_kv_heads
        return list(torch.arange(count).repeat_interleave(max(1, tp // count)).chunk(tp))

    def _dealt(self, whole: torch.Tensor) -> torch.Tensor:
        """Outputs of q, k and v [t, all heads] as the ranks hold them, side by side."""
        decoder, tp = self.config.decoder, self.config.tp
        sizes = [decoder.num_heads, decoder.num_kv_heads, decoder.num_kv_heads]
        q, k, v = torch.split(whole.view(len(whole), -1, decoder.head_dim), sizes, dim=1)
        parts = zip(q.chunk(tp, dim=1), self._kv_heads(), strict=True)
        return torch.cat([each for own, heads in parts for each in (own, k[:, heads], v[:, heads])], dim=1).flatten(1)


def output_error(seen: torch.Tensor, expected: torch.Tensor) -> float:
    """As `Deviation.error`, of [t, outputs] each."""
    return float((seen - expected).norm(dim=0).max() / expected.norm(dim=0).square().mean().sqrt())

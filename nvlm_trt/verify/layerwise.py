"""Every tensor of a converted decoder against the source, layer by layer, each layer fed what the reference feeds it.

Distances of logits say what a precision costs, but they hide defects: in a deep model in few bits one scrambled layer
is lost in the rounding of all others. Here errors don't add up: the reference runs in float32, and every linear layer
is given the reference's own inputs on its ranks.

One layer is in memory at a time, whatever the size of the model.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own short name

from nvlm_trt.decoder.calibration_layer import DecoderLayer
from nvlm_trt.decoder.convert import rank_file
from nvlm_trt.decoder.trtllm_config import TrtllmConfig
from nvlm_trt.decoder.trtllm_layout import padded_vocab, stage_layers
from nvlm_trt.emulation.arithmetic import BLOCK_VALUES, COMPUTE, RankTensors
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.config import DecoderConfig
from nvlm_trt.model.reference.layer_stream import weight_bytes
from nvlm_trt.model.tensors import DECODER_EMBEDDING, DECODER_HEAD, DECODER_NORM, DECODER_PREFIX, decoder_layer
from nvlm_trt.progress import Progress
from nvlm_trt.verify.fake_quant import Roundings
from nvlm_trt.verify.layer_deviation import ConvertedLayer, Deviation, SourceLayer
from nvlm_trt.verify.layer_errors import LayerError
from nvlm_trt.verify.sharded import Prompt

BLOCK_ROWS = 4096
"""Rows of the embedding and of the head that are compared at a time."""


@dataclass(frozen=True, slots=True)
class LayerwiseReport:
    """What was found in all layers.

    Attributes:
        linears: One a linear layer, in order.
        caches: One a layer if the KV cache is quantised.
        differing: Tensors that should be copies of the source's and are not, by name and rank.
    """

    linears: tuple[Deviation, ...]
    caches: tuple[Deviation, ...]
    differing: tuple[str, ...]

    def figures(self) -> dict[str, float]:
        """By name, for gates.

        Returns:
            `tensors_differing`; `linear_excess`, the largest one, where linear layers are quantised, else
            `linear_error`, the largest one; `cache_excess`, the largest one, where the KV cache is quantised.
        """
        figures: dict[str, float] = {"linears": len(self.linears), "tensors_differing": len(self.differing)}
        if self.quantises_linears:
            figures["linear_excess"] = worst(self.linears).excess
        else:
            figures["linear_error"] = max((each.error for each in self.linears), key=_nan_first)
        if self.caches:
            figures["cache_excess"] = worst(self.caches).excess
        return figures

    def layer_errors(self) -> list[LayerError]:
        """The worst linear layer of every layer."""
        by_layer: dict[int, list[LayerError]] = defaultdict(list)
        for each in self.linears:
            error = LayerError("decoder", each.layer, each.name, each.error, each.yardstick or None)
            by_layer[each.layer].append(error)
        return [max(errors, key=lambda error: error.badness) for errors in by_layer.values()]

    @property
    def quantises_linears(self) -> bool:
        """Whether linear layers are quantised."""
        return all(each.yardstick for each in self.linears)


def worst(deviations: Sequence[Deviation]) -> Deviation:
    """The one of the largest excess; one that is not a number comes before all others."""
    return max(deviations, key=lambda each: _nan_first(each.excess))


def compare_layers(
    checkpoint: Checkpoint, trtllm_dir: Path, prompts: Sequence[Prompt], *, progress: Progress | None = None
) -> LayerwiseReport:
    """Compare all tensors of all ranks with the source.

    Args:
        checkpoint: The source of the conversion.
        trtllm_dir: The TensorRT-LLM checkpoint.
        prompts: What the reference is fed; hidden states of all tokens are held in memory.
        progress: Told bytes of the source's decoder that are done, and in all.

    Raises:
        CheckpointError: a file cannot be read, or a tensor of a rank is missing, misshapen or mistyped.
    """
    run = _Run(checkpoint, trtllm_dir, TrtllmConfig.read(trtllm_dir))
    roundings = Roundings.of(run.config.precision)
    tell = progress or (lambda _done, _total: None)
    layers = [decoder_layer(index) for index in range(run.config.decoder.num_layers)]
    sizes, total = [weight_bytes(checkpoint, prefix) for prefix in layers], weight_bytes(checkpoint, DECODER_PREFIX)
    linears: list[Deviation] = []
    caches: list[Deviation] = []
    with torch.inference_mode():
        differing = list(run.ends_differing())
        tell(total - sum(sizes), total)
        hidden = [run.embedded(prompt) for prompt in prompts]
        for index in range(len(layers)):
            source, converted = run.source_layer(index, hidden), run.converted_layer(index)
            linears += converted.linear_deviations(source, roundings)
            caches += converted.cache_deviations(source, roundings)
            differing += converted.differing(source)
            tell(total - sum(sizes[index + 1 :]), total)
    return LayerwiseReport(tuple(linears), tuple(caches), tuple(differing))


def peak_bytes(decoder: DecoderConfig, tokens: int) -> int:
    """What `compare_layers` holds at most, the process itself aside: one layer, and what all tokens see in it.

    Measured at widths of 2048 and 7392: 0.85 to 0.95 of this; at those of NVLM-D-72B, with few tokens, 7.5 GiB in all.

    Args:
        decoder: The source's decoder.
        tokens: Of all prompts together.
    """
    hidden, wide = decoder.hidden_size, decoder.intermediate_size
    attention = 2 * hidden * (decoder.query_width + decoder.kv_width)
    layer, largest = attention + 3 * hidden * wide, hidden * max(wide, hidden)
    weights = 4 * layer + 4 * 4 * largest  # float32: the layer; its largest matrix, copied and rounded in three steps
    mapped = 2 * layer  # pages of the file that is being read
    blocks = 4 * COMPUTE.itemsize * BLOCK_VALUES
    seen = 4 * (4 * hidden + wide)  # float32: a hidden state, and the inputs of qkv, dense, fc and proj
    products = 8 * (hidden + 5 * wide)  # float64: input, and three outputs, two of them padded once more
    return weights + mapped + blocks + tokens * (seen + products)


@dataclass(frozen=True, slots=True)
class _Run:
    """The source and the converted decoder, read part by part."""

    checkpoint: Checkpoint
    directory: Path
    config: TrtllmConfig

    def embedded(self, prompt: Prompt) -> torch.Tensor:
        """What enters the first layer, float32 [t, hidden]."""
        ids, table = prompt
        index, vocab_size = torch.as_tensor(np.asarray(ids, dtype=np.int64)), self.config.decoder.vocab_size
        visual = index >= vocab_size
        rows = self.checkpoint.read(DECODER_EMBEDDING)  # mapped: a few rows are read
        hidden = rows[index.masked_fill(visual, 0)].to(self.config.dtype.torch).float()
        if table is not None:
            hidden[visual] = torch.as_tensor(table)[index[visual] - vocab_size].float()
        return hidden

    def source_layer(self, index: int, hidden: list[torch.Tensor]) -> SourceLayer:
        """Put the hidden states through a layer, in place of those before it, and keep what its parts were given."""
        prefix, dtype = decoder_layer(index), self.config.dtype.torch
        names = (name for name in self.checkpoint.tensors if name.startswith(prefix))
        weights = {name.removeprefix(prefix): self.checkpoint.read(name, dtype).float() for name in names}
        seen: dict[str, list[torch.Tensor]] = defaultdict(list)
        layer = DecoderLayer(self.config.unpadded, weights, lambda key, values: seen[key].append(values.clone()))
        hidden[:] = [layer(each) for each in hidden]
        return SourceLayer(index, weights, seen)

    def converted_layer(self, index: int) -> ConvertedLayer:
        """The same layer on its ranks."""
        stages = [stage_layers(self.config.decoder.num_layers, self.config.pp, each) for each in range(self.config.pp)]
        stage = next(number for number, layers in enumerate(stages) if index in layers)
        prefix = f"transformer.layers.{index - stages[stage].start}."
        return ConvertedLayer(self.config, prefix, [rank for _, rank in self._ranks(stage)])

    def ends_differing(self) -> Iterator[str]:
        """Copies of the embedding, the last norm and the head that are none."""
        decoder, tp = self.config.decoder, self.config.tp
        for number, rank in self._ranks(0):
            embedding = rank.take("transformer.vocab_embedding.weight", decoder.vocab_size, decoder.hidden_size)
            if not self._is_copy(embedding, DECODER_EMBEDDING, 0):
                yield f"transformer.vocab_embedding.weight of rank {number}"
        rows = padded_vocab(decoder.vocab_size, tp) // tp
        for number, rank in self._ranks(self.config.pp - 1):
            if not self._is_copy(rank.take("transformer.ln_f.weight", decoder.hidden_size), DECODER_NORM, 0):
                yield f"transformer.ln_f.weight of rank {number}"
            head = rank.take("lm_head.weight", rows, decoder.hidden_size)
            if not self._is_copy(head, DECODER_HEAD, number % tp * rows):
                yield f"lm_head.weight of rank {number}"

    def _ranks(self, stage: int) -> Iterator[tuple[int, RankTensors]]:
        """The ranks of a stage with their numbers."""
        for number in range(stage * self.config.tp, (stage + 1) * self.config.tp):
            yield number, RankTensors(self.directory / rank_file(number), self.config.dtype.torch)

    def _is_copy(self, stored: torch.Tensor, source: str, first: int) -> bool:
        """Whether it holds the source's rows from `first` on, and zeros where the source has no more."""
        count = self.checkpoint.tensors[source].shape[0]
        for start in range(0, len(stored), BLOCK_ROWS):
            block = stored[start : start + BLOCK_ROWS]
            edges = (min(first + start, count), min(first + start + len(block), count))
            rows = self.checkpoint.read_rows(source, *edges, self.config.dtype.torch)
            missing = len(block) - len(rows)
            if not torch.equal(block, F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, missing))):
                return False
        return True


def _nan_first(value: float) -> float:
    return math.inf if math.isnan(value) else value

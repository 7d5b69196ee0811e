"""Read a TensorRT-LLM checkpoint back: check every rank's header, and join the ranks into the unsharded decoder.

Joining is cutting reversed: the pieces that `trtllm_layout` names are put back where they came from, and padding is
left behind. Quantised weights are checked, not joined. Nothing is read before it is asked for, and nothing is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nvlm_trt.decoder.convert import RANK_FILE, rank_file
from nvlm_trt.decoder.trtllm_config import TrtllmConfig
from nvlm_trt.decoder.trtllm_layout import Parameter, Piece, Rank, rank_parameters
from nvlm_trt.errors import CheckpointError, RecipeError, listed
from nvlm_trt.model.config import DecoderConfig
from nvlm_trt.model.safetensors_read import opened, read_header
from nvlm_trt.model.tensors import DECODER_EMBEDDING, DECODER_HEAD, DECODER_NORM, decoder_layer

RECOMPUTED_BUFFERS = ("rotary_inv_freq", "embed_positions", "embed_positions_for_gpt_attention")
"""Tables that official converters also store; TensorRT-LLM computes them anew, so they may be there, unread."""

RANK = "a rank file"


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer, unsharded; matrices are [out, in], all in the checkpoint's dtype.

    H is the hidden size, Q = heads * head_dim, K = kv heads * head_dim, I the intermediate size.

    Attributes:
        input_norm: [H].
        q_weight: [Q, H].
        q_bias: [Q].
        k_weight: [K, H].
        k_bias: [K].
        v_weight: [K, H].
        v_bias: [K].
        o_weight: [H, Q].
        post_norm: [H].
        gate_weight: [I, H], the branch that SiLU is applied to (TensorRT-LLM's `fc`).
        up_weight: [I, H] (TensorRT-LLM's `gate`).
        down_weight: [H, I].
    """

    input_norm: torch.Tensor
    q_weight: torch.Tensor
    q_bias: torch.Tensor
    k_weight: torch.Tensor
    k_bias: torch.Tensor
    v_weight: torch.Tensor
    v_bias: torch.Tensor
    o_weight: torch.Tensor
    post_norm: torch.Tensor
    gate_weight: torch.Tensor
    up_weight: torch.Tensor
    down_weight: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a piece of a source tensor lies: rows from `row` on of a parameter in a rank file."""

    file: Path
    parameter: Parameter
    row: int
    piece: Piece

    def read(self) -> torch.Tensor:
        with opened(self.file, RANK) as rank:
            rows: torch.Tensor
            if self.piece.rows == self.parameter.shape[0]:
                rows = rank.get_tensor(self.parameter.name)
            else:
                rows = rank.get_slice(self.parameter.name)[self.row : self.row + self.piece.rows]
            if self.piece.columns is None:
                return rows
            first, last = self.piece.columns
            return rows[:, : last - first]


class TrtllmCheckpoint:
    """An opened and checked TensorRT-LLM checkpoint.

    Attributes:
        path: The checkpoint directory.
        config: What its config.json says.
    """

    def __init__(self, path: Path, config: TrtllmConfig, ranks: Sequence[tuple[Parameter, ...]]) -> None:
        self.path = path
        self.config = config
        self._places = _index(path, ranks)

    @classmethod
    def open(cls, path: Path | str) -> TrtllmCheckpoint:
        """Read config.json and every rank's header, and check names, shapes and dtypes.

        Raises:
            CheckpointError: with every fault of every rank in one message.
        """
        directory = Path(path)
        config = TrtllmConfig.read(directory)
        try:
            ranks = [
                rank_parameters(config.unpadded, Rank(config.tp, config.pp, index), config.precision)
                for index in range(config.world_size)
            ]
        except RecipeError as error:
            raise CheckpointError(f"config.json contradicts itself: {error}", seen=directory) from None
        _check_ranks(directory, config, ranks)
        return cls(directory, config, ranks)

    @property
    def decoder(self) -> DecoderConfig:
        """Shapes and constants of the decoder that the joined tensors make up: as in the source, without padding."""
        return self.config.unpadded

    @property
    def dtype(self) -> torch.dtype:
        """Of every value that is not quantised."""
        return self.config.dtype.torch

    @property
    def tp(self) -> int:
        """Ranks that share each layer."""
        return self.config.tp

    @property
    def pp(self) -> int:
        """Pipeline stages."""
        return self.config.pp

    def embedding(self) -> torch.Tensor:
        """The token embedding, [vocab_size, hidden]."""
        return self.joined(DECODER_EMBEDDING)

    def final_norm(self) -> torch.Tensor:
        """The weight of the last RMSNorm, [hidden]."""
        return self.joined(DECODER_NORM)

    def lm_head(self) -> torch.Tensor:
        """The output matrix without its padding rows, [vocab_size, hidden]."""
        return self.joined(DECODER_HEAD)

    def layer(self, index: int) -> LayerWeights:
        """One layer by its place in the whole model, whichever stage holds it.

        Raises:
            IndexError: there is no such layer.
            CheckpointError: its weights are quantised.
        """
        if not 0 <= index < self.decoder.num_layers:
            raise IndexError(f"layer {index} of {self.decoder.num_layers}")
        prefix = decoder_layer(index)
        attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
        return LayerWeights(
            input_norm=self.joined(f"{prefix}input_layernorm.weight"),
            q_weight=self.joined(f"{attention}q_proj.weight"),
            q_bias=self.joined(f"{attention}q_proj.bias"),
            k_weight=self.joined(f"{attention}k_proj.weight"),
            k_bias=self.joined(f"{attention}k_proj.bias"),
            v_weight=self.joined(f"{attention}v_proj.weight"),
            v_bias=self.joined(f"{attention}v_proj.bias"),
            o_weight=self.joined(f"{attention}o_proj.weight"),
            post_norm=self.joined(f"{prefix}post_attention_layernorm.weight"),
            gate_weight=self.joined(f"{mlp}gate_proj.weight"),
            up_weight=self.joined(f"{mlp}up_proj.weight"),
            down_weight=self.joined(f"{mlp}down_proj.weight"),
        )

    def joined(self, source: str) -> torch.Tensor:
        """An unsharded tensor by its name in the NVLM-D checkpoint (``language_model....``).

        Copies that several ranks hold (norms, embedding, repeated kv heads) are read from the first of them.

        Raises:
            KeyError: the decoder has no such tensor.
            CheckpointError: it is quantised.
        """
        places = self._places[source]
        if any(place.parameter.calibrated for place in places):
            raise CheckpointError(
                "quantised weights cannot be joined",
                seen=f"{source} in {self.config.quantization.quant_algo}",
                fix="convert the checkpoint to bf16, int8_wo or int4_wo, which keep the values themselves",
            )
        if len(places) == 1:
            return places[0].read()
        rows = max(place.piece.stop for place in places)
        width = places[0].parameter.shape[1:]
        if places[0].piece.columns is not None:
            width = (max(place.piece.columns[1] for place in places if place.piece.columns),)
        whole = torch.empty((rows, *width), dtype=self.dtype)
        for place in places:
            target = whole[place.piece.start : place.piece.stop]
            if place.piece.columns is not None:
                target = target[:, slice(*place.piece.columns)]
            target.copy_(place.read())
        return whole


def _index(path: Path, ranks: Sequence[tuple[Parameter, ...]]) -> Mapping[str, list[_Place]]:
    """For every source tensor, the places that make it up, each part once."""
    found: dict[str, dict[Piece, _Place]] = {}
    for number, parameters in enumerate(ranks):
        for parameter in parameters:
            row = 0
            for piece in parameter.pieces:
                if piece.source is not None:
                    place = _Place(path / rank_file(number), parameter, row, piece)
                    found.setdefault(piece.source, {}).setdefault(piece, place)
                row += piece.rows
    return {source: list(places.values()) for source, places in found.items()}


def _check_ranks(directory: Path, config: TrtllmConfig, ranks: Sequence[tuple[Parameter, ...]]) -> None:
    faults: list[str] = []
    for number, parameters in enumerate(ranks):
        faults += _rank_faults(directory / rank_file(number), parameters)
    known = {rank_file(number) for number in range(len(ranks))}
    present = {path.name for path in directory.iterdir() if RANK_FILE.fullmatch(path.name)}
    faults += [f"{name}: there are only {len(ranks)} ranks" for name in sorted(present - known)]
    if faults:
        raise CheckpointError(
            f"{directory.name}: {len(faults)} faults in the TensorRT-LLM checkpoint{listed(faults)}",
            fix="convert the checkpoint again",
        )


def _rank_faults(file: Path, parameters: Sequence[Parameter]) -> list[str]:
    if not file.is_file():
        return [f"{file.name}: missing"]
    try:
        seen = read_header(file, RANK)
    except CheckpointError as error:
        return [f"{file.name}: {error.what}"]
    expected = {parameter.name: (parameter.shape, parameter.dtype) for parameter in parameters}
    faults = []
    for name, (shape, kind) in expected.items():
        if name not in seen:
            faults.append(f"{file.name}: missing {name} {list(shape)}")
        elif seen[name][0] != shape:
            faults.append(f"{file.name}: shape of {name} is {list(seen[name][0])}, expected {list(shape)}")
        elif seen[name][1] != kind:
            faults.append(f"{file.name}: dtype of {name} is {seen[name][1]}, expected {kind}")
    extra = [name for name in seen if name not in expected and name.rpartition(".")[2] not in RECOMPUTED_BUFFERS]
    return faults + [f"{file.name}: unexpected {name} {list(seen[name][0])}" for name in sorted(extra)]

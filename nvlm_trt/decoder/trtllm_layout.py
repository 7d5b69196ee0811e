"""Which tensors one rank of a TensorRT-LLM checkpoint holds, and from which pieces of the source each is made.

One description serves the converter (cut), the checker (names, shapes) and the reader (join). The rules are those of
TensorRT-LLM 1.x: models/qwen/model.py (which modules), layers/linear.py and layers/attention.py (which dimension is
split), models/model_weights_loader.py (names), mapping.py (ranks and pipeline stages).

- every linear weight stays [out, in]; qkv is q, k, v of the rank, one after the other
- k and v heads are repeated where there are more ranks than heads: rank r takes head r // (tp / kv_heads)
- `fc` is the gated (activated) branch, i.e. the source's gate_proj; `gate` is its up_proj
- attention.dense and mlp.proj are split on their input (dim 1), so their partial sums need an all-reduce
- lm_head gets zero rows up to a multiple of tp; the embedding is whole on every rank of the first stage
- layers are renumbered from 0 in every pipeline stage
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nvlm_trt.errors import RecipeError
from nvlm_trt.model.config import DecoderConfig
from nvlm_trt.model.tensors import DECODER_PREFIX, decoder_layer

EMBEDDING_SOURCE = f"{DECODER_PREFIX}model.embed_tokens.weight"
FINAL_NORM_SOURCE = f"{DECODER_PREFIX}model.norm.weight"
LM_HEAD_SOURCE = f"{DECODER_PREFIX}lm_head.weight"


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows [start, stop) of a source tensor, or rows of zeros, and a range of columns if not all of them.

    Attributes:
        source: Name of the tensor in the NVLM-D checkpoint; None for rows of zeros.
        start: First row (dim 0).
        stop: Row after the last.
        columns: [first, last) on dim 1; None for all of them, and for vectors.
    """

    source: str | None
    start: int
    stop: int
    columns: tuple[int, int] | None = None

    @property
    def rows(self) -> int:
        """How many rows it contributes."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor of a rank file: its name, its shape, and the pieces that stand one below the other in it."""

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True, slots=True)
class Rank:
    """One process of a tensor- and pipeline-parallel run; tp ranks of a stage are neighbours."""

    tp: int
    pp: int
    index: int

    @property
    def tp_rank(self) -> int:
        """Place among the ranks that share a layer."""
        return self.index % self.tp

    @property
    def stage(self) -> int:
        """Pipeline stage."""
        return self.index // self.tp

    @property
    def is_first_stage(self) -> bool:
        """Whether it holds the embedding."""
        return self.stage == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether it holds the final norm and the lm_head."""
        return self.stage == self.pp - 1


def stage_layers(num_layers: int, pp: int, stage: int) -> range:
    """Global indices of the layers of one stage: the first `num_layers % pp` stages take one more."""
    size, longer = divmod(num_layers, pp)
    start = stage * size + min(stage, longer)
    return range(start, start + size + (1 if stage < longer else 0))


def padded_vocab(vocab_size: int, tp: int) -> int:
    """Rows of the whole lm_head: the vocabulary rounded up to a multiple of tp."""
    return -(-vocab_size // tp) * tp


def check_parallelism(decoder: DecoderConfig, tp: int, pp: int) -> None:
    """Check that the shapes allow this tp and pp.

    Raises:
        RecipeError: they do not; every reason is listed, with the values that would be allowed.
    """
    reasons = [*_tp_faults(decoder, tp), *_pp_faults(decoder, pp)]
    if not reasons:
        return
    allowed = [count for count in range(1, decoder.num_heads + 1) if not _tp_faults(decoder, count)]
    raise RecipeError(
        f"the decoder cannot be split over tp {tp} x pp {pp}: " + "; ".join(reasons),
        expected=f"tp one of {', '.join(map(str, allowed))}; pp from 1 to {decoder.num_layers}",
    )


def _tp_faults(decoder: DecoderConfig, tp: int) -> list[str]:
    if tp < 1:
        return [f"tp is {tp}, at least 1 is needed"]
    faults = []
    if decoder.num_heads % tp:
        faults.append(f"{decoder.num_heads} attention heads are no multiple of tp {tp}")
    if decoder.num_kv_heads % tp and tp % decoder.num_kv_heads:
        faults.append(f"neither of {decoder.num_kv_heads} kv heads and tp {tp} is a multiple of the other")
    if decoder.intermediate_size % tp:
        faults.append(f"intermediate size {decoder.intermediate_size} is no multiple of tp {tp}")
    return faults


def _pp_faults(decoder: DecoderConfig, pp: int) -> list[str]:
    if pp < 1:
        return [f"pp is {pp}, at least 1 is needed"]
    if pp > decoder.num_layers:
        return [f"{decoder.num_layers} layers are fewer than pp {pp}"]
    return []


def rank_parameters(decoder: DecoderConfig, rank: Rank) -> tuple[Parameter, ...]:
    """Every tensor of one rank file, in the order of the forward pass.

    All ranks of one stage have the same names and shapes in the same order.

    Raises:
        RecipeError: the shapes do not allow this tp and pp.
    """
    check_parallelism(decoder, rank.tp, rank.pp)
    return tuple(_parameters(decoder, rank))


def _parameters(decoder: DecoderConfig, rank: Rank) -> Iterator[Parameter]:
    hidden = decoder.hidden_size
    if rank.is_first_stage:
        yield _matrix("transformer.vocab_embedding.weight", hidden, Piece(EMBEDDING_SOURCE, 0, decoder.vocab_size))
    for local, index in enumerate(stage_layers(decoder.num_layers, rank.pp, rank.stage)):
        yield from _layer(decoder, rank, f"transformer.layers.{local}.", decoder_layer(index))
    if rank.is_last_stage:
        yield _vector("transformer.ln_f.weight", Piece(FINAL_NORM_SOURCE, 0, hidden))
        yield _matrix("lm_head.weight", hidden, *_head_pieces(decoder, rank))


def _layer(decoder: DecoderConfig, rank: Rank, name: str, source: str) -> Iterator[Parameter]:
    hidden, head = decoder.hidden_size, decoder.head_dim
    queries = _share(decoder.num_heads * head, rank)
    wide = _share(decoder.intermediate_size, rank)
    keys = _kv_rows(decoder, rank)
    attention, mlp = f"{source}self_attn.", f"{source}mlp."

    def qkv(kind: str) -> tuple[Piece, ...]:
        return (
            Piece(f"{attention}q_proj.{kind}", *queries),
            Piece(f"{attention}k_proj.{kind}", *keys),
            Piece(f"{attention}v_proj.{kind}", *keys),
        )

    yield _vector(f"{name}input_layernorm.weight", Piece(f"{source}input_layernorm.weight", 0, hidden))
    yield _matrix(f"{name}attention.qkv.weight", hidden, *qkv("weight"))
    yield _vector(f"{name}attention.qkv.bias", *qkv("bias"))
    yield _columns(f"{name}attention.dense.weight", f"{attention}o_proj.weight", hidden, queries)
    yield _matrix(f"{name}mlp.fc.weight", hidden, Piece(f"{mlp}gate_proj.weight", *wide))
    yield _columns(f"{name}mlp.proj.weight", f"{mlp}down_proj.weight", hidden, wide)
    yield _matrix(f"{name}mlp.gate.weight", hidden, Piece(f"{mlp}up_proj.weight", *wide))
    yield _vector(f"{name}post_layernorm.weight", Piece(f"{source}post_attention_layernorm.weight", 0, hidden))


def _share(size: int, rank: Rank) -> tuple[int, int]:
    share = size // rank.tp
    return rank.tp_rank * share, (rank.tp_rank + 1) * share


def _kv_rows(decoder: DecoderConfig, rank: Rank) -> tuple[int, int]:
    head = decoder.head_dim
    if rank.tp <= decoder.num_kv_heads:
        return _share(decoder.num_kv_heads * head, rank)
    index = rank.tp_rank // (rank.tp // decoder.num_kv_heads)
    return index * head, (index + 1) * head


def _head_pieces(decoder: DecoderConfig, rank: Rank) -> tuple[Piece, ...]:
    start, stop = _share(padded_vocab(decoder.vocab_size, rank.tp), rank)
    real_start, real_stop = min(start, decoder.vocab_size), min(stop, decoder.vocab_size)
    padding = (stop - start) - (real_stop - real_start)
    pieces = (Piece(LM_HEAD_SOURCE, real_start, real_stop), Piece(None, 0, padding))
    return tuple(piece for piece in pieces if piece.rows)


def _matrix(name: str, width: int, *pieces: Piece) -> Parameter:
    return Parameter(name, (sum(piece.rows for piece in pieces), width), pieces)


def _vector(name: str, *pieces: Piece) -> Parameter:
    return Parameter(name, (sum(piece.rows for piece in pieces),), pieces)


def _columns(name: str, source: str, rows: int, columns: tuple[int, int]) -> Parameter:
    return Parameter(name, (rows, columns[1] - columns[0]), (Piece(source, 0, rows, columns),))

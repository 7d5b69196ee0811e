"""Which tensors one rank of a TensorRT-LLM checkpoint holds, and from which pieces of the source each is made.

One description serves the converter (cut), the checker (names, shapes, dtypes) and the reader (join). The rules are
those of TensorRT-LLM 1.x: models/qwen/model.py (which modules), layers/linear.py and layers/attention.py (which
dimension is split), models/model_weights_loader.py (names), mapping.py (ranks and pipeline stages).

- every linear weight stays [out, in]; qkv is q, k, v of the rank, one after the other
- k and v heads are repeated where there are more ranks than heads: rank r takes head r // (tp / kv_heads)
- `fc` is the gated (activated) branch, i.e. the source's gate_proj; `gate` is its up_proj
- attention.dense and mlp.proj are split on their input (dim 1), so their partial sums need an all-reduce
- lm_head gets zero rows up to a multiple of tp; the embedding is whole on every rank of the first stage
- layers are renumbered from 0 in every pipeline stage
- where a precision asks for a wider MLP, fc and gate get zero rows and proj zero columns, all at the end
- scales per output are split with the rows, scales per input (prequant, AWQ's groups) with the columns, and single
  scales are the same on every rank (quantization/layers.py)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nvlm_trt.decoder.precision import BF16, KV_CACHE_SCALE, WEIGHT, Precision
from nvlm_trt.errors import RecipeError
from nvlm_trt.model.config import DecoderConfig
from nvlm_trt.model.safetensors_stream import TensorSpec
from nvlm_trt.model.tensors import DECODER_EMBEDDING, DECODER_HEAD, DECODER_NORM, decoder_layer


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
class Calibrated:
    """Which results of the calibration a tensor is made with.

    Attributes:
        layer: The layer's place in the whole model.
        key: "qkv", "dense", "fc" (which stands for gate as well), "proj" or "kv".
        inputs: [first, last) of the linear layer's inputs that the rank holds, padding counted; None for the KV cache.
    """

    layer: int
    key: str
    inputs: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor of a rank file.

    Attributes:
        name: Its name.
        shape: Its shape.
        dtype: Its dtype, as safetensors calls it.
        pieces: What stands, one below the other, in it; of a quantised weight, what was there before. A piece of fewer
            columns is followed by zeros. Scales have none.
        calibrated: What it is made with if it isn't a copy of the pieces.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[Piece, ...]
    calibrated: Calibrated | None = None

    @property
    def spec(self) -> TensorSpec:
        """How a safetensors file describes it."""
        return TensorSpec(self.name, self.dtype, self.shape)


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


def check_parallelism(decoder: DecoderConfig, tp: int, pp: int, precision: Precision = BF16) -> None:
    """Check that the shapes allow this tp and pp at this precision.

    Raises:
        RecipeError: they do not; every reason is listed, with the values that would be allowed.
    """
    reasons = [*_tp_faults(decoder, tp, precision), *_pp_faults(decoder, pp)]
    if not reasons:
        return
    algo = precision.quantization.quant_algo
    allowed = [count for count in range(1, decoder.num_heads + 1) if not _tp_faults(decoder, count, precision)]
    raise RecipeError(
        f"the decoder cannot be split over tp {tp} x pp {pp}{f' in {algo}' if algo else ''}: " + "; ".join(reasons),
        expected=f"tp one of {', '.join(map(str, allowed))}; pp from 1 to {decoder.num_layers}"
        if allowed
        else "another precision: no tp allows this one",
    )


def _tp_faults(decoder: DecoderConfig, tp: int, precision: Precision) -> list[str]:
    if tp < 1:
        return [f"tp is {tp}, at least 1 is needed"]
    faults = []
    if decoder.num_heads % tp:
        faults.append(f"{decoder.num_heads} attention heads are no multiple of tp {tp}")
    if decoder.num_kv_heads % tp and tp % decoder.num_kv_heads:
        faults.append(f"neither of {decoder.num_kv_heads} kv heads and tp {tp} is a multiple of the other")
    faults += _alignment_faults(decoder, tp, precision.multiple, whole_heads=not faults)
    wide = precision.padded_intermediate(decoder.intermediate_size, tp)
    if wide % tp:
        faults.append(f"intermediate size {wide} is no multiple of tp {tp}")
    return faults


def _alignment_faults(decoder: DecoderConfig, tp: int, multiple: int, *, whole_heads: bool) -> list[str]:
    """Widths that padding cannot mend: they belong to the residual stream and to the heads.

    The hidden size is never cut in fc, gate and qkv, and yet must be a multiple for every rank
    (WeightOnlyQuantLinear and WeightOnlyGroupwiseQuantLinear widen any other weight, which then doesn't load).
    """
    faults = []
    if multiple > 1 and decoder.hidden_size % (multiple * tp):
        faults.append(f"hidden size {decoder.hidden_size} is no multiple of {multiple} x tp {tp}")
    if whole_heads:
        queries = decoder.num_heads // tp * decoder.head_dim
        rows = queries + 2 * max(decoder.num_kv_heads // tp, 1) * decoder.head_dim
        if rows % multiple:
            faults.append(f"{rows} rows of q, k and v on a rank are no multiple of {multiple}")
        if queries % multiple:
            faults.append(f"{queries} columns of attention.dense on a rank are no multiple of {multiple}")
    return faults


def _pp_faults(decoder: DecoderConfig, pp: int) -> list[str]:
    if pp < 1:
        return [f"pp is {pp}, at least 1 is needed"]
    if pp > decoder.num_layers:
        return [f"{decoder.num_layers} layers are fewer than pp {pp}"]
    return []


def rank_parameters(decoder: DecoderConfig, rank: Rank, precision: Precision = BF16) -> tuple[Parameter, ...]:
    """Every tensor of one rank file, in the order of the forward pass.

    All ranks of one stage have the same names, shapes and dtypes in the same order.

    Args:
        decoder: The decoder, its MLP as wide as in the source or already padded.
        rank: Which rank.
        precision: How values are stored.

    Raises:
        RecipeError: the shapes do not allow this tp and pp at this precision.
    """
    check_parallelism(decoder, rank.tp, rank.pp, precision)
    return tuple(_RankLayout(decoder, rank, precision).parameters())


class _RankLayout:
    """Names, shapes and sources of one rank."""

    def __init__(self, decoder: DecoderConfig, rank: Rank, precision: Precision) -> None:
        self._decoder, self._rank, self._precision = decoder, rank, precision
        self._hidden = decoder.hidden_size
        self._queries = _share(decoder.query_width, rank)
        self._keys = _kv_rows(decoder, rank)
        self._wide = _share(precision.padded_intermediate(decoder.intermediate_size, rank.tp), rank)

    def parameters(self) -> Iterator[Parameter]:
        decoder, rank = self._decoder, self._rank
        if rank.is_first_stage:
            yield self._plain("transformer.vocab_embedding.weight", Piece(DECODER_EMBEDDING, 0, decoder.vocab_size))
        for local, index in enumerate(stage_layers(decoder.num_layers, rank.pp, rank.stage)):
            yield from self._layer(f"transformer.layers.{local}.", index)
        if rank.is_last_stage:
            yield self._vector("transformer.ln_f.weight", Piece(DECODER_NORM, 0, self._hidden))
            rows = _share(padded_vocab(decoder.vocab_size, rank.tp), rank)
            yield self._plain("lm_head.weight", *_padded(DECODER_HEAD, rows, decoder.vocab_size))

    def _layer(self, name: str, index: int) -> Iterator[Parameter]:
        source = decoder_layer(index)
        attention, mlp = f"{source}self_attn.", f"{source}mlp."
        real, whole = self._decoder.intermediate_size, (0, self._hidden)

        def qkv(kind: str) -> tuple[Piece, ...]:
            return (
                Piece(f"{attention}q_proj.{kind}", *self._queries),
                Piece(f"{attention}k_proj.{kind}", *self._keys),
                Piece(f"{attention}v_proj.{kind}", *self._keys),
            )

        def rows(part: str) -> tuple[Piece, ...]:
            return _padded(f"{mlp}{part}.weight", self._wide, real)

        def columns(part: str, inputs: tuple[int, int], width: int) -> Piece:
            start, stop = (min(edge, width) for edge in inputs)
            return Piece(f"{source}{part}.weight", 0, self._hidden, (start, stop))

        queries = columns("self_attn.o_proj", self._queries, self._decoder.query_width)
        down = columns("mlp.down_proj", self._wide, real)
        yield self._vector(f"{name}input_layernorm.weight", Piece(f"{source}input_layernorm.weight", *whole))
        if self._precision.quantization.kv_cache_quant_algo is not None:
            scale = f"{name}attention.{KV_CACHE_SCALE}"
            yield Parameter(scale, (1,), "F32", (), Calibrated(index, "kv"))
        weight, *scales = self._linear(f"{name}attention.qkv", Calibrated(index, "qkv", whole), *qkv("weight"))
        yield weight
        yield self._vector(f"{name}attention.qkv.bias", *qkv("bias"))
        yield from scales
        yield from self._linear(f"{name}attention.dense", Calibrated(index, "dense", self._queries), queries)
        yield from self._linear(f"{name}mlp.fc", Calibrated(index, "fc", whole), *rows("gate_proj"))
        yield from self._linear(f"{name}mlp.proj", Calibrated(index, "proj", self._wide), down)
        yield from self._linear(f"{name}mlp.gate", Calibrated(index, "fc", whole), *rows("up_proj"))
        yield self._vector(f"{name}post_layernorm.weight", Piece(f"{source}post_attention_layernorm.weight", *whole))

    def _linear(self, name: str, calibrated: Calibrated, *pieces: Piece) -> Iterator[Parameter]:
        assert calibrated.inputs is not None
        first, last = calibrated.inputs
        outputs = sum(piece.rows for piece in pieces)
        for tensor in self._precision.linear_tensors(outputs, last - first):
            yield Parameter(
                f"{name}.{tensor.suffix}",
                tensor.shape,
                tensor.dtype,
                pieces if tensor.suffix == WEIGHT else (),
                calibrated if self._precision.quantizes_weights else None,
            )

    def _plain(self, name: str, *pieces: Piece) -> Parameter:
        shape = (sum(piece.rows for piece in pieces), self._hidden)
        return Parameter(name, shape, self._precision.dtype.safetensors, pieces)

    def _vector(self, name: str, *pieces: Piece) -> Parameter:
        shape = (sum(piece.rows for piece in pieces),)
        return Parameter(name, shape, self._precision.dtype.safetensors, pieces)


def _padded(source: str, rows: tuple[int, int], real: int) -> tuple[Piece, ...]:
    """Rows of a source that has `real` of them, and rows of zeros for those beyond."""
    start, stop = (min(edge, real) for edge in rows)
    pieces = (Piece(source, start, stop), Piece(None, 0, rows[1] - rows[0] - (stop - start)))
    return tuple(piece for piece in pieces if piece.rows)


def _share(size: int, rank: Rank) -> tuple[int, int]:
    share = size // rank.tp
    return rank.tp_rank * share, (rank.tp_rank + 1) * share


def _kv_rows(decoder: DecoderConfig, rank: Rank) -> tuple[int, int]:
    head = decoder.head_dim
    if rank.tp <= decoder.num_kv_heads:
        return _share(decoder.kv_width, rank)
    index = rank.tp_rank // (rank.tp // decoder.num_kv_heads)
    return index * head, (index + 1) * head

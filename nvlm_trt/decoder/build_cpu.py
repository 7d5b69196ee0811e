"""Stage decoder-compile on the cpu target: a TensorRT-LLM checkpoint to an OpenVINO model."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import openvino as ov

from nvlm_trt.decoder.engine_config import BLOCK_SIZE, FORMAT, MODEL_NAME, DecoderEngineConfig
from nvlm_trt.decoder.graph_constants import LEAST_GROUP, STORAGE, group_size
from nvlm_trt.decoder.graph_cpu import build_graph
from nvlm_trt.decoder.trtllm_checkpoint import TrtllmCheckpoint
from nvlm_trt.errors import BuildError, RecipeError
from nvlm_trt.model.config import DecoderConfig
from nvlm_trt.progress import Progress

BYTES_PER_WEIGHT = {"fp32": 4, "bf16": 2, "int8_wo": 1}
"""Of matrices whose weights take whole bytes."""

SCALE_BYTES = 4


def build_decoder_cpu(
    trtllm_dir: Path,
    out_dir: Path,
    *,
    precision: str,
    max_batch_size: int,
    max_seq_len: int,
    max_prompt_table_rows: int,
    exclude: Collection[int] = (),
    progress: Progress | None = None,
) -> None:
    """Compile the checkpoint: out_dir gets model.xml, model.bin and config.json.

    The same weights give the same bytes, however many ranks they were sharded over. For an fp32 engine that equals the
    fp32 reference the TensorRT-LLM checkpoint has to be float32 too.

    Args:
        trtllm_dir: A TensorRT-LLM checkpoint of any tp and pp; its ranks are joined, one tensor at a time.
        out_dir: Directory to write into; made if it is missing.
        precision: "fp32", "bf16", "int8", "int8_wo" or "int4_wo".
        max_batch_size: Sequences in one step at most.
        max_seq_len: Prompt and answer of one request at most, in tokens.
        max_prompt_table_rows: Rows of one request's prompt table at most (0 for text only).
        exclude: Layers that stay bf16 where the precision quantises.
        progress: Called with (bytes done, bytes in all) of the engine's weights.

    Raises:
        RecipeError: a limit, the precision or a layer to exclude is impossible, or the model is too narrow for 4 bits.
        CheckpointError: the checkpoint is incomplete or damaged.
        BuildError: a weight is not finite, or the model cannot be written.
    """
    _check_recipe(precision, max_batch_size, max_seq_len, max_prompt_table_rows)
    checkpoint = TrtllmCheckpoint.open(trtllm_dir)
    decoder = checkpoint.decoder
    if max_seq_len > decoder.max_position_embeddings:
        raise RecipeError(
            "the recipe's input and output are longer than the model's positions",
            seen=max_seq_len,
            expected=f"at most {decoder.max_position_embeddings}",
        )
    if unknown := sorted(layer for layer in exclude if layer >= decoder.num_layers):
        raise RecipeError(
            "exclude_layers names layers that the decoder has not",
            seen=unknown,
            expected=f"0 to {decoder.num_layers - 1}",
        )
    _check_groups(decoder, precision)
    out_dir.mkdir(parents=True, exist_ok=True)
    total = engine_bytes(decoder, precision, exclude)
    layer_bytes = _layer_bytes(decoder, STORAGE[precision].layers)

    def on_layer(count: int) -> None:
        if progress is not None:
            progress(count * layer_bytes, total)

    model = build_graph(checkpoint, precision=precision, max_seq_len=max_seq_len, exclude=exclude, on_layer=on_layer)
    try:
        ov.save_model(model, out_dir / MODEL_NAME, compress_to_fp16=False)
    except RuntimeError as error:
        raise BuildError(f"the decoder model cannot be written ({error})", fix="check the disk") from None
    DecoderEngineConfig(
        format=FORMAT,
        precision=precision,
        vocab_size=decoder.vocab_size,
        hidden_size=decoder.hidden_size,
        num_layers=decoder.num_layers,
        num_heads=decoder.num_heads,
        num_kv_heads=decoder.num_kv_heads,
        head_dim=decoder.head_dim,
        block_size=BLOCK_SIZE,
        max_batch_size=max_batch_size,
        max_seq_len=max_seq_len,
        max_prompt_table_rows=max_prompt_table_rows,
    ).write(out_dir)
    if progress is not None:
        progress(total, total)


def engine_bytes(decoder: DecoderConfig, precision: str, exclude: Collection[int] = ()) -> int:
    """Bytes of the weights of an engine, for the preflight of disk and memory.

    RoPE tables and the scales of 8-bit rows are left out; those of 4-bit groups are an eighth of the codes.
    """
    storage, kept = STORAGE[precision], len(exclude)
    layers = (decoder.num_layers - kept) * _layer_bytes(decoder, storage.layers) + kept * _layer_bytes(decoder, "bf16")
    ends = (_matrix_bytes(decoder.vocab_size, decoder.hidden_size, end) for end in (storage.embedding, storage.output))
    return layers + sum(ends)


def _layer_bytes(decoder: DecoderConfig, stored: str) -> int:
    queries, keys = decoder.query_width, decoder.kv_width
    wide, hidden = decoder.intermediate_size, decoder.hidden_size
    matrices = ((queries + 2 * keys, hidden), (hidden, queries), (2 * wide, hidden), (hidden, wide))
    return sum(_matrix_bytes(outputs, inputs, stored) for outputs, inputs in matrices)


def _matrix_bytes(outputs: int, inputs: int, stored: str) -> int:
    if stored == "int4_wo":
        return outputs * (inputs // 2 + inputs // group_size(inputs) * SCALE_BYTES)
    return outputs * inputs * BYTES_PER_WEIGHT[stored]


def _check_recipe(precision: str, max_batch_size: int, max_seq_len: int, max_prompt_table_rows: int) -> None:
    if precision not in STORAGE:
        raise RecipeError("the cpu target has no such decoder precision", seen=precision, expected=" | ".join(STORAGE))
    for name, value, least in (
        ("max_batch_size", max_batch_size, 1),
        ("max_seq_len", max_seq_len, 2),
        ("max_prompt_table_rows", max_prompt_table_rows, 0),
    ):
        if value < least:
            raise RecipeError(f"{name} is too small", seen=value, expected=f"{least} or more")


def _check_groups(decoder: DecoderConfig, precision: str) -> None:
    widths = (decoder.hidden_size, decoder.query_width, decoder.intermediate_size)
    odd = [width for width in widths if group_size(width) < LEAST_GROUP]
    if STORAGE[precision].layers == "int4_wo" and odd:
        raise RecipeError(
            "4-bit weights share scales in groups, into which the decoder's widths do not divide",
            seen=odd,
            expected=f"multiples of {LEAST_GROUP}",
            fix="take decoder_precision int8_wo",
        )

"""The project's own small tokenizers, for synthetic checkpoints and the miniature: Qwen2's BPE and special tokens.

What differs are the merges. Those of synthetic checkpoints are 244, learned on a page of picture questions. Like
Qwen2's they join ``><``, and ``>`` with a newline, so that the traps of the real tokenizer are traps here too; ids
differ, names do not.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import pre_tokenizers

from nvlm_trt.model.tokenizer import FILES, read_merges

MERGES_FILE = Path(__file__).parent / "data" / "mini_merges.txt"

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""In the order of Qwen2.5's ids 151643 to 151656."""

PLAIN_ADDED_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
"""Added tokens that are not special, ids 151657 to 151664 there."""


def mini_merges() -> str:
    """The merges of synthetic checkpoints."""
    return MERGES_FILE.read_text(encoding="utf-8")


def vocabulary_of(merges: str) -> dict[str, int]:
    """Id of every BPE piece: the 256 bytes, then the merges in order."""
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in read_merges(merges))]
    return {piece: index for index, piece in enumerate(pieces)}


def tokenizer_size(merges: str) -> int:
    """Number of ids, added tokens included."""
    return len(vocabulary_of(merges)) + len(SPECIAL_TOKENS) + len(PLAIN_ADDED_TOKENS)


def write_tokenizer(directory: Path, merges: str) -> None:
    """Write vocab.json, merges.txt and tokenizer_config.json, in the layout of the release."""
    vocabulary = vocabulary_of(merges)
    added = {}
    for index, text in enumerate([*SPECIAL_TOKENS, *PLAIN_ADDED_TOKENS], start=len(vocabulary)):
        flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
        added[str(index)] = {"content": text, **flags, "special": text in SPECIAL_TOKENS}
    settings = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    vocab_name, merges_name, settings_name = FILES
    (directory / vocab_name).write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (directory / merges_name).write_text(merges, encoding="utf-8")
    (directory / settings_name).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

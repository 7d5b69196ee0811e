"""The decoder of an NVLM-D checkpoint as Hugging Face's own Qwen2, without remote code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PREFIX = "language_model."
NOT_TAKEN = ("model_type", "architectures", "rope_scaling", "torch_dtype")
"""Of `llm_config`: the release calls the decoder "llama", and scales nothing within the trained length."""


def config_fields(checkpoint: Path) -> dict[str, Any]:
    """What `llm_config` says that is Qwen2Config's."""
    said = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["llm_config"]
    return {name: value for name, value in said.items() if name not in NOT_TAKEN}


def open_qwen2(checkpoint: Path) -> Any:
    """A Qwen2ForCausalLM in bf16 with the checkpoint's weights."""
    import torch
    from safetensors import safe_open
    from transformers import Qwen2Config, Qwen2ForCausalLM

    weights = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no dictionary
                if name.startswith(PREFIX):
                    weights[name.removeprefix(PREFIX)] = opened.get_tensor(name)
    config = Qwen2Config(**config_fields(checkpoint))
    model, told = Qwen2ForCausalLM.from_pretrained(
        None, config=config, state_dict=weights, dtype=torch.bfloat16, output_loading_info=True
    )
    if told["missing_keys"] or told["unexpected_keys"]:
        raise ValueError(f"the decoder is another than Qwen2: {told}")
    return model.eval()

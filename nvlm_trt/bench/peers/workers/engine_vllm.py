"""vLLM on CPU and its own NVLM-D, in bf16: the engine in this process, a step at a time."""

from __future__ import annotations

import importlib
import io
import json
import os
import time
from pathlib import Path
from typing import Any

CACHE_GB = 1
"""Of the KV cache: some 80,000 tokens at the shapes of `synth --size small`."""

STEP_TOKENS = 4096
"""Read in a step at most: vLLM's own choice for CPUs; a warm-up of as many decides over its memory."""

NORM = "vision_model.encoder.layers.0.attn.q_norm.weight"
"""Of all heads."""

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # nothing stands between this loop and the engine
    "VLLM_CPU_KVCACHE_SPACE": str(CACHE_GB),
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def prepare(job: dict[str, Any]) -> None:
    """Import what is loaded with.

    A torchvision that was built for CUDA cannot load its operators beside a torch that was not, and then fails to be
    imported for want of two of them. vLLM takes only transforms of images from it: those operators' names are enough.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from vllm import ModelRegistry
    from vllm.model_executor.models import nvlm_d
    from vllm.transformers_utils import config

    config._CONFIG_REGISTRY["NVLM_D"] = _config_class()
    # By its name alone it would be imported in a process without those operators.
    ModelRegistry.register_model("NVLM_D", nvlm_d.NVLM_D_Model)
    build, heads = nvlm_d.InternVisionModel, _dummy_heads(Path(job["checkpoint"]))
    nvlm_d.InternVisionModel = lambda *parts, **told: build(*parts, **{**told, "num_dummy_heads": heads})


def _dummy_heads(checkpoint: Path) -> int:
    """All-zero heads that a checkpoint has beside the real ones; vLLM takes the release's 7 for granted."""
    from safetensors import safe_open

    vision = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["vision_config"]
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            if NORM in opened.keys():  # noqa: SIM118 - it is no dictionary
                width = opened.get_slice(NORM).get_shape()[0]
                heads = vision["num_attention_heads"]
                return int(width // (vision["hidden_size"] // heads) - heads)
    raise ValueError(f"the checkpoint has no {NORM}")


def _config_class() -> Any:
    """The configuration of a checkpoint, which in the release comes as remote code."""
    from transformers import PreTrainedConfig, Qwen2Config

    qwen2 = importlib.import_module("qwen2")

    class NvlmConfig(PreTrainedConfig):  # type: ignore[misc]
        model_type = "NVLM_D"
        has_no_defaults_at_init = True

        def __init__(self, vision_config: Any = None, llm_config: Any = None, **others: Any) -> None:
            others.pop("auto_map", None)
            self.vision_config = PreTrainedConfig(**{"initializer_factor": 1.0, **(vision_config or {})})
            fields = {name: value for name, value in (llm_config or {}).items() if name not in qwen2.NOT_TAKEN}
            self.text_config = Qwen2Config(**fields, architectures=["Qwen2ForCausalLM"])
            super().__init__(**others)

        def get_text_config(self, *_: Any, **__: Any) -> Any:
            return self.text_config

    return NvlmConfig


class Engine:
    """vLLM's engine.

    Args:
        job: `checkpoint`, `eager`, `max_requests`, `max_model_len`, `max_tiles`.
    """

    gather_s = 0.0

    def __init__(self, job: dict[str, Any]) -> None:
        import torch
        from vllm import EngineArgs, LLMEngine

        arguments = EngineArgs(
            model=job["checkpoint"],
            dtype="bfloat16",
            max_model_len=job["max_model_len"],
            max_num_batched_tokens=min(STEP_TOKENS, job["max_model_len"]),
            max_num_seqs=job["max_requests"],
            limit_mm_per_prompt={"image": 1},
            mm_processor_kwargs={"max_dynamic_patch": job["max_tiles"]},
            enforce_eager=job["eager"],
            disable_log_stats=True,
        )
        self._engine = LLMEngine.from_engine_args(arguments)
        self._done: dict[int, int] = {}
        preloaded = [Path(name).name for name in os.environ.get("LD_PRELOAD", "").split(":") if name]
        mode = "eager" if job["eager"] else "compiled"
        self.settings = (
            f"{mode}, preloaded {', '.join(preloaded) or 'nothing'}, KV cache {CACHE_GB} GB, "
            f"{arguments.max_num_batched_tokens} tokens a step at most, {torch.get_num_threads()} threads"
        )
        self.prompts: dict[int, int] = {}

    def submit(self, number: int, ids: list[int], max_tokens: int, *, text: str | None, image: bytes | None) -> None:
        """Take a request: ids; or with an image a text, as vLLM puts tags and visual tokens in by itself."""
        from PIL import Image
        from vllm import SamplingParams

        prompt: dict[str, Any] = {"prompt_token_ids": ids}
        if image is not None:
            picture = Image.open(io.BytesIO(image)).convert("RGB")
            prompt = {"prompt": text, "multi_modal_data": {"image": picture}}
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        self._engine.add_request(str(number), prompt, params)
        self._done[number] = 0

    def step(self) -> list[tuple[int, int, float, bool]]:
        """One step: request, token, time, whether it is the last."""
        outputs = self._engine.step()
        at = time.perf_counter()
        found = []
        for output in outputs:
            number, tokens = int(output.request_id), output.outputs[0].token_ids
            self.prompts[number] = len(output.prompt_token_ids)
            new = tokens[self._done[number] :]
            self._done[number] += len(new)
            found += [(number, token, at, output.finished and place == len(new) - 1) for place, token in enumerate(new)]
            if output.finished:
                del self._done[number]
        return found

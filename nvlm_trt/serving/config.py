"""config.pbtxt of every Triton model, built as the protobuf message that the server parses.

Names and dimensions of `tensorrt_llm` are those of NVIDIA's C++ backend, so that what is proven on the cpu target holds
on the gpu target. A configuration is never a text template: a value that is missing or of the wrong type fails here,
not in the server.
"""

from __future__ import annotations

from google.protobuf import text_format

from nvlm_trt.errors import EngineError
from nvlm_trt.serving.config_cpu import cpu_models
from nvlm_trt.serving.config_gpu import gpu_models
from nvlm_trt.serving.config_parts import ModelConfig
from nvlm_trt.serving.spec import ServingSpec


def configs(spec: ServingSpec) -> dict[str, ModelConfig]:
    """The configuration of every model of the repository, by name."""
    made = cpu_models(spec) if spec.target == "cpu" else gpu_models(spec)
    return {config.name: config for config in made}


def to_pbtxt(config: ModelConfig) -> str:
    """The text of config.pbtxt, with ``max_batch_size: 0`` spelt out: absent it would be auto-completed."""
    text = str(text_format.MessageToString(config))
    return text if config.max_batch_size else f"max_batch_size: 0\n{text}"


def from_pbtxt(text: str) -> ModelConfig:
    """Parse a config.pbtxt.

    Raises:
        EngineError: it is no model configuration.
    """
    try:
        return text_format.Parse(text, ModelConfig())
    except text_format.ParseError as error:
        raise EngineError(f"a config.pbtxt cannot be parsed ({error})", fix="package the engine again") from None

"""The shapes that a plan counts with: those of the release, or of any checkpoint's config.json."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from nvlm_trt.model.checkpoint import SINGLE_NAME, Checkpoint, TensorInfo
from nvlm_trt.model.config import NvlmConfig, load_config
from nvlm_trt.model.release import F32_PARTS
from nvlm_trt.model.safetensors_stream import TensorSpec
from nvlm_trt.model.synthetic import like_72b
from nvlm_trt.model.tensors import expected_tensors

RELEASE = "NVLM-D-72B"
RELEASED_VISION_LAYERS, RELEASED_DECODER_LAYERS = 45, 80


def planned_shapes(checkpoint: Path | None) -> Checkpoint:
    """The headers of a checkpoint directory as its config.json lets one expect them; without one, of the release.

    Nothing but config.json is read, so there are no values, and the dummy heads, of which config.json doesn't tell, are
    the release's 7 where the shapes are the release's, and none elsewhere.

    Raises:
        CheckpointError: there is no config.json, or it isn't NVLM-D's.
    """
    spec = like_72b(RELEASED_VISION_LAYERS)
    decoder = dataclasses.replace(spec.config.decoder, num_layers=RELEASED_DECODER_LAYERS)
    release = dataclasses.replace(spec.config, decoder=decoder)
    if checkpoint is None:
        return _headers(Path(RELEASE), release, spec.dummy_heads)
    config = load_config(checkpoint)
    same = (config.vision, config.decoder) == (release.vision, release.decoder)
    return _headers(checkpoint, config, spec.dummy_heads if same else 0)


def _headers(directory: Path, config: NvlmConfig, dummy_heads: int) -> Checkpoint:
    """Names, shapes and bytes in the release's mix of F32 and BF16."""
    tensors = {}
    for name, shape in expected_tensors(config, dummy_heads).items():
        dtype = "F32" if any(part in name for part in F32_PARTS) else "BF16"
        size = TensorSpec(name, dtype, shape).nbytes
        tensors[name] = TensorInfo(name, shape, dtype, directory / SINGLE_NAME, size)
    return Checkpoint(directory, config, tensors)

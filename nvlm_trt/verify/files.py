"""Where an engine directory keeps what it answers with, and what the calibration stages have measured."""

from __future__ import annotations

from typing import Final

ENGINE_FILES: Final = ("recipe.yaml", "config.json", "tokenizer", "vision/cpu", "decoder/cpu")
"""What the answers of an engine directory of the cpu target depend on."""

VISION_CALIBRATION: Final = "vision/calibration.safetensors"
"""What the stage vision-calibrate leaves."""

DECODER_CALIBRATION: Final = "decoder/calibration"
"""What the stage decoder-calibrate leaves."""

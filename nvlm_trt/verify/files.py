"""Where an engine directory keeps what the calibration stages have measured; relative to it."""

from __future__ import annotations

from typing import Final

VISION_CALIBRATION: Final = "vision/calibration.safetensors"
"""What the stage vision-calibrate leaves."""

DECODER_CALIBRATION: Final = "decoder/calibration"
"""What the stage decoder-calibrate leaves."""

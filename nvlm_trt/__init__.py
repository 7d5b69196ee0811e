"""nvlm-trt: from an NVLM-D checkpoint to a running Triton Inference Server."""

__version__ = "0.1.0"

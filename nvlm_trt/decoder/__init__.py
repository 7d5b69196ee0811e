"""The decoder's stages: convert to a TensorRT-LLM checkpoint, compile it, run it."""

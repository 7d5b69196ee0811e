"""The Triton Python models: thin adapters between the backend's tensors and the logic in nvlm_trt.serving."""

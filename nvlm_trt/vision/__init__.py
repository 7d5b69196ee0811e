"""The vision stage: InternViT and projector as one ONNX graph, compiled for the CPU, and run."""

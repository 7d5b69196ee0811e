"""Triton: the model repository, and the logic of its models."""

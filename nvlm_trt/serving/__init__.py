"""Triton: the model repository, the logic of its models, and the server that runs them."""

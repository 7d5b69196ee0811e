"""What NVIDIA says of GPU models, as data."""

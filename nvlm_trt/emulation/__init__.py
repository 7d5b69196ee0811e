"""Precisions of the gpu target in torch: their arithmetic, and the decoder and the vision encoder computed in it."""

"""What NVLM-D is: its configuration, tiling, prompt, checkpoint and reference arithmetic. Knows no other part."""

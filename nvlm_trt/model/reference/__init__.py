"""The oracle inside the project: NVLM-D in plain torch, written to be read beside the released code, not to be fast."""

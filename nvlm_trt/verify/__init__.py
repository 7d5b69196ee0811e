"""Proofs that what was built computes what the released model computes."""

"""Runs fuzzers; what has to hold is in tests/fuzz."""

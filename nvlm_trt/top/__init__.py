"""What a running server is doing, for a terminal: from its /metrics and nothing else."""

"""What a user who chooses among precisions wants to know: accuracy, size, memory, latency, throughput, in one table."""

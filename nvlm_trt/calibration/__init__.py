"""What quantised models are calibrated on: samples in a JSONL file, and the set that the project ships."""

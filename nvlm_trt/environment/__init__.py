"""What this machine has: GPUs, driver, and the versions that engines are tied to. All parts know it, it knows none."""

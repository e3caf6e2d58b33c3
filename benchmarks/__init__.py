"""Speed and memory, always as ratios within one run. Run one with ``python -m benchmarks.NAME``."""

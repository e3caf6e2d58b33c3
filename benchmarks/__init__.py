"""Speed, as ratios within one run, and what precisions cost. Run one with ``python -m benchmarks.NAME``."""

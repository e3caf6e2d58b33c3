"""Timing that is fair to all sides."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

__all__ = ["interleaved_medians"]


def interleaved_medians(runners: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: int) -> dict[str, float]:
    """Times callables that take turns, so that all of them share the machine's moods.

    Args:
        runners: What to time, by name; each is called once per round, in this order.
        rounds: How many rounds count.
        warm_up: How many rounds before them do not.

    Returns:
        The median of each, in seconds. Quote ratios of one run, never numbers of two.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(warm_up + rounds):
        for name, run in runners.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[warm_up:]) for name, times in seconds.items()}

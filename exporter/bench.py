"""Timing that is fair to all sides."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping

__all__ = ["interleaved_medians"]

# A runtime's worker threads spin for some milliseconds after their work is done, at the cost of whoever comes next.
PAUSE_SECONDS = 0.02


def interleaved_medians(
    runners: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: int, pause: float = PAUSE_SECONDS
) -> dict[str, float]:
    """Times callables that take turns, so that all of them share the machine's moods.

    Args:
        runners: What to time, by name; each is called once per round, in an order mixed anew.
        rounds: How many rounds count.
        warm_up: How many rounds before them do not.
        pause: Seconds before each call; none where a GPU runs, which no worker threads slow down but idling does.

    Returns:
        The median of each, in seconds. Quote ratios of one run, never numbers of two.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    order = list(runners.items())
    shuffle = random.Random(0).shuffle  # noqa: S311  # no secret: the order is to be mixed, and the same each time
    for _ in range(warm_up + rounds):
        shuffle(order)  # whoever always follows the same neighbour inherits its caches
        for name, run in order:
            time.sleep(pause)
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[warm_up:]) for name, times in seconds.items()}

"""How long something takes that is over in far less than the time spent on timing it."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

PROBE_SECONDS = 0.4


def mean_seconds(action: Callable[[], object], probes: float = 1.0) -> float:
    """Seconds that an action takes, on average, once it has been done.

    Args:
        action: what to do again and again.
        probes: for how long, in times of `PROBE_SECONDS`.
    """
    action()
    times, began = 0, perf_counter()
    while (spent := perf_counter() - began) < probes * PROBE_SECONDS:
        action()
        times += 1
    return spent / times

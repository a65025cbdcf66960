"""How long something takes that is over in far less than the time spent on timing it."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

PROBE_SECONDS = 0.4


def mean_seconds(action: Callable[[], object], times_as_long: float = 1.0) -> float:
    """Seconds that an action takes, on average, once it has been done.

    Args:
        action: what to do again and again.
        times_as_long: as `PROBE_SECONDS` it is to be done.
    """
    action()
    times, began = 0, perf_counter()
    while (spent := perf_counter() - began) < times_as_long * PROBE_SECONDS:
        action()
        times += 1
    return spent / times

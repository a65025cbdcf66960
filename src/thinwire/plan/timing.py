"""How long something takes that is over in a moment, by doing it again and again."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from statistics import fmean, stdev
from time import perf_counter

# Whether a CPU quota stops the work, which it does within each 100 ms, shows in twice that time;
# where it does, it takes many such periods to a mean.
LEAST_SECONDS, MOST_SECONDS = 0.2, 1.0
PRECISION = 0.05


def mean_seconds(action: Callable[[], object]) -> float:
    """Seconds that an action takes, on average, once it has been done.

    Until the mean's standard error is `PRECISION` of it, within `LEAST_SECONDS` and `MOST_SECONDS`.
    """
    action()
    times: list[float] = []
    spent = 0.0
    while spent < LEAST_SECONDS or (spent < MOST_SECONDS and not _is_precise(times)):
        began = perf_counter()
        action()
        times.append(perf_counter() - began)
        spent += times[-1]
    return fmean(times)


def _is_precise(times: list[float]) -> bool:
    return len(times) > 1 and stdev(times) <= PRECISION * sqrt(len(times)) * fmean(times)

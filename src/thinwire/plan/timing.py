"""Measures the time of a short action by repeating it."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from statistics import fmean, stdev
from time import perf_counter

# A CPU quota is enforced within periods of 100 ms, so it shows within two periods. If it stops the
# work, a precise mean needs many periods.
LEAST_SECONDS, MOST_SECONDS = 0.2, 1.0
PRECISION = 0.05


def mean_seconds(action: Callable[[], object]) -> float:
    """The mean time of an action in seconds, without the first call.

    The action is repeated until the standard error of the mean is at most `PRECISION` times the
    mean, for `LEAST_SECONDS` at least and about `MOST_SECONDS` at most.
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

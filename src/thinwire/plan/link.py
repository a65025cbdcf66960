"""The link between the workers of a run, measured by sending: all to one another at once, as they
do in training, so that a link which several of them share counts as what each has of it then."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch

from thinwire.plan.forecast import Link
from thinwire.transport.collective import Collective

NUM_SMALL = 20
LEAST_SECONDS = 1.0
# From each worker to each other one at a time. Larger ones, all at once, get in one another's way.
NUM_BYTES = 1 << 17
GROWTH = 4


def measure_link(team: Collective) -> Link:
    """What the slowest of at least two workers finds; each of them has to call it.

    Takes a few seconds, or as long as `NUM_BYTES` from each worker to each other one take.
    """
    give = _giver(team, 1)
    give()  # whatever the first message waits for
    latency_seconds = _slowest(team, median(_seconds(give) for _ in range(NUM_SMALL)))
    give, times = _giver(team, NUM_BYTES), 1
    while (spent := _slowest(team, sum(_seconds(give) for _ in range(times)))) < LEAST_SECONDS:
        times *= GROWTH
    # Where most of it is latency, it says little of the rate.
    carrying = max(spent - times * latency_seconds, spent / 2)
    return Link(times * (team.size - 1) * NUM_BYTES / carrying, latency_seconds)


def _giver(team: Collective, num_bytes: int) -> Callable[[], object]:
    """Has every worker give so many bytes to each of the others."""
    message, lengths = torch.zeros(num_bytes, dtype=torch.uint8), [num_bytes] * team.size
    return lambda: team.all_gather(message, lambda: lengths).wait()


def _seconds(action: Callable[[], object]) -> float:
    began = perf_counter()
    action()
    return perf_counter() - began


def _slowest(team: Collective, seconds: float) -> float:
    """The same on all workers."""
    return float(max(team.all_gather_json(seconds)))

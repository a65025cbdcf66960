"""Measures the link between the workers of a run.

All workers send to each other at once, as in training. So if several workers share a link, the
result is the part of it that each of them has in training.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch

from thinwire.plan.forecast import Link
from thinwire.transport.collective import Collective

NUM_SMALL = 20
LEAST_SECONDS = 1.0
# Bytes of a message from each worker to each other worker. Larger messages slow each other down.
NUM_BYTES = 1 << 17
GROWTH = 4


def measure_link(collective: Collective) -> Link:
    """Measure the link of the slowest of at least two workers. All workers must call this.

    It takes a few seconds, but at least the time that `NUM_BYTES` take from each worker to each
    other worker.
    """
    send = _all_gather_of(collective, 1)
    send()  # the first message may wait for connections
    latency_seconds = _slowest(collective, median(_seconds(send) for _ in range(NUM_SMALL)))
    send, times = _all_gather_of(collective, NUM_BYTES), 1
    while (
        spent := _slowest(collective, sum(_seconds(send) for _ in range(times)))
    ) < LEAST_SECONDS:
        times *= GROWTH
    # If latency takes most of the time, the rate is not measured well; limit its correction.
    carrying = max(spent - times * latency_seconds, spent / 2)
    return Link(times * (collective.size - 1) * NUM_BYTES / carrying, latency_seconds)


def _all_gather_of(collective: Collective, num_bytes: int) -> Callable[[], object]:
    """A call in which every worker sends `num_bytes` bytes to each other worker."""
    message, lengths = torch.zeros(num_bytes, dtype=torch.uint8), [num_bytes] * collective.size
    return lambda: collective.all_gather(message, lambda: lengths).wait()


def _seconds(action: Callable[[], object]) -> float:
    began = perf_counter()
    action()
    return perf_counter() - began


def _slowest(collective: Collective, seconds: float) -> float:
    """The largest value of all workers."""
    return float(max(collective.all_gather_json(seconds)))

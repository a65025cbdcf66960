"""All workers stand still while the first one does something long, such as evaluating.

The others must not take its silence for its end. So it gives a sign of life now and then: sums over
all workers in which it says 1 for "wait on", and 0 together with its result when it is done.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread

from thinwire.errors import UserError
from thinwire.exchange.contract import Exchange


@dataclass
class Result:
    """A number that the first worker finds and the others learn."""

    number: float = 0.0


@contextmanager
def keep_alive_barrier(
    exchange: Exchange, leads: bool, patience_seconds: float
) -> Iterator[Result]:
    """The first worker's body counts; the others' `Result` holds its number afterwards."""
    result = Result()
    if not leads:
        yield result
        waiting = 1.0
        while waiting:
            waiting, result.number = exchange.total([0.0, 0.0]).wait()
        return
    done = Event()

    def live() -> None:
        try:
            while not done.wait(patience_seconds):
                exchange.total([1.0, 0.0]).wait()
        except UserError:  # a worker has gone: the last sum will say so too
            return

    living = Thread(target=live, name="keep_alive_barrier", daemon=True)
    living.start()
    try:
        yield result
    finally:
        done.set()
        living.join()
    exchange.total([0.0, result.number]).wait()

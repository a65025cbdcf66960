"""A barrier at which all workers wait while the first one does something long, such as evaluating.

The other workers would conclude from a long silence that the first worker has died. So it sends
keep-alive messages: sums over all workers of the pair (1, 0) while it works, and of (0, result)
when it is done.
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
    """A number that the first worker computes and sends to the others."""

    number: float = 0.0


@contextmanager
def keep_alive_barrier(
    exchange: Exchange, is_first: bool, interval_seconds: float
) -> Iterator[Result]:
    """All workers leave the block together, with the number that the first one has computed.

    Args:
        exchange: sums the keep-alive messages over all workers.
        is_first: whether this is the first worker. Only its result is used.
        interval_seconds: time between two keep-alive messages.

    Yields:
        A `Result`. The first worker sets its number in the block; on the other workers it has the
        same number after the block.
    """
    result = Result()
    if not is_first:
        yield result
        is_busy = 1.0
        while is_busy:
            is_busy, result.number = exchange.total([0.0, 0.0]).wait()
        return
    done = Event()

    def keep_alive() -> None:
        try:
            while not done.wait(interval_seconds):
                exchange.total([1.0, 0.0]).wait()
        except UserError:  # a worker has gone: the last sum will raise the same error
            return

    thread = Thread(target=keep_alive, name="keep_alive_barrier", daemon=True)
    thread.start()
    try:
        yield result
    finally:
        done.set()
        thread.join()
    exchange.total([0.0, result.number]).wait()

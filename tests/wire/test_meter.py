"""The meter: what passes the listener, whoever carries it."""

from __future__ import annotations

from threading import Thread

from thinwire.wire.meter import Meter


def test_counts_both_ways_apart() -> None:
    meter = Meter()
    assert (meter.sent, meter.received) == (0, 0)
    meter.count(sent=3)
    meter.count(received=5)
    meter.count(sent=1, received=2)
    assert (meter.sent, meter.received) == (4, 7)


def test_threads_may_share_one() -> None:
    meter = Meter()

    def count() -> None:
        for _ in range(5000):
            meter.count(sent=1, received=2)

    threads = [Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (meter.sent, meter.received) == (20_000, 40_000)

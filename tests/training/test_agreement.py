from __future__ import annotations

from thinwire.exchange.contract import Traffic
from thinwire.training.agreement import STATUS_NUMBERS, Status

TRAFFIC = Traffic(100, 200, 1000, 3.0, 1.0)


def test_statuses_are_summed_number_by_number() -> None:
    first = Status(2.5, 0, 0.25, True, False, TRAFFIC)
    second = Status(1.5, 1, 0.0, False, False, TRAFFIC)
    assert len(first.to_numbers()) == STATUS_NUMBERS
    added = map(sum, zip(first.to_numbers(), second.to_numbers(), strict=True))
    both = Status(4.0, 1, 0.25, 1, 0, Traffic(200, 400, 2000, 6.0, 2.0))
    assert Status.from_numbers(list(added)) == both


def test_bytes_are_of_all_workers_and_seconds_of_the_average_one() -> None:
    assert TRAFFIC.over_workers(2) == {
        "bytes_sent": 100,
        "bytes_received": 200,
        "bytes_dense": 1000,
        "exchange_seconds": 1.5,
        "wire_seconds": 0.5,
    }

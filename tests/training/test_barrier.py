"""Workers that wait for the first stay alive, and learn what it has found."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from time import sleep
from typing import Any

import pytest

from thinwire.errors import UserError
from thinwire.exchange.coded import CodedCollective
from thinwire.training.barrier import keep_alive_barrier
from thinwire.transport.collective import Collective

Together = Callable[..., list[Any]]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_all_learn_what_the_first_has_found(size: int, together: Together) -> None:
    """Though it takes much longer than anybody waits for another."""

    def work(member: Collective) -> list[float]:
        exchange: Any = CodedCollective(member, "fp32", seed=0)
        found = []
        for number in (12.5, math.inf, 3.0):
            with keep_alive_barrier(exchange, member.rank == 0, interval_seconds=0.02) as result:
                if member.rank == 0:
                    sleep(0.6 if number == 12.5 else 0.0)
                    result.number = number
            found.append(result.number)
        return found

    assert together(size, work, timeout_seconds=0.3) == [[12.5, math.inf, 3.0]] * size


def test_a_failure_of_the_first_ends_the_others_wait(outcomes: Together) -> None:
    def work(member: Collective) -> None:
        exchange: Any = CodedCollective(member, "fp32", seed=0)
        with keep_alive_barrier(exchange, member.rank == 0, interval_seconds=0.02):
            if member.rank == 0:
                raise UserError("the disk is full")

    found = outcomes(2, work)
    assert str(found[0]) == "the disk is full"
    assert isinstance(found[1], UserError) and "worker 0 of 2" in str(found[1])
    assert not [thread for thread in threading.enumerate() if thread.name == "keep_alive_barrier"]


def test_a_worker_that_goes_meanwhile_is_named(outcomes: Together) -> None:
    """And no thread ends in a traceback, which pytest would tell."""

    def work(member: Collective) -> None:
        exchange: Any = CodedCollective(member, "fp32", seed=0)
        if member.rank == 1:
            return
        with keep_alive_barrier(exchange, True, interval_seconds=0.02):
            sleep(0.2)

    found = outcomes(2, work)
    assert isinstance(found[0], UserError) and "worker 1 of 2" in str(found[0])

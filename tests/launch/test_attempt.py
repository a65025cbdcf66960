"""Workers agree on their attempt, whatever their machines have counted."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from torch._C._distributed_c10d import HashStore, Store

from thinwire.errors import UserError
from thinwire.launch.attempt import agree_on_attempt


def met(store: Store, *restarts: int) -> tuple[str, bool]:
    """What workers agree on that have counted so many restarts."""
    with ThreadPoolExecutor(len(restarts)) as pool:
        found = [
            pool.submit(agree_on_attempt, store, rank, len(restarts), count, 20.0)
            for rank, count in enumerate(restarts)
        ]
        first, *others = [one.result() for one in found]
    assert all(other == first for other in others)
    return first


def test_machines_that_have_counted_otherwise_agree() -> None:
    """A worker on the second machine has died: only that machine counts it."""
    store = HashStore()
    first, restarted = met(store, 0, 0)
    assert not restarted
    second, restarted = met(store, 0, 1)
    assert restarted and second != first
    third, restarted = met(store, 0, 1)  # a machine has come back: nobody counts it
    assert restarted and third not in (first, second)


def test_a_new_store_is_told_of_restarts_by_any_worker() -> None:
    assert met(HashStore(), 0, 0, 2)[1]
    assert not met(HashStore(), 0)[1]


def test_an_attempt_that_is_over_is_not_joined() -> None:
    store = HashStore()
    met(store, 0, 0)
    with pytest.raises(UserError, match="worker 0 of 2 has not come within"):
        agree_on_attempt(store, 1, 2, 1, 0.3)

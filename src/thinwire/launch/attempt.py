"""The workers of torchrun agree on a name for their attempt of a run.

With it they never connect to workers of an earlier attempt: torchrun's store outlives its attempts.
TORCHELASTIC_RESTART_COUNT cannot serve as the name. It counts the failures of one machine's
workers, so it differs between machines after a worker has died.

The first worker draws a random name and stores it. Every other worker answers with a random ticket,
and has joined when the first worker has confirmed that ticket. A name that an earlier attempt left
in the store never confirms a new ticket.
"""

from __future__ import annotations

import json
from secrets import token_hex
from time import monotonic, sleep

from torch._C._distributed_c10d import Store

from thinwire.errors import UserError

POLL_SECONDS = 0.05


def agree_on_attempt(
    store: Store, rank: int, size: int, restarts: int, timeout_seconds: float
) -> tuple[str, bool]:
    """Agree on the name of this attempt; returns it, and whether there was an earlier attempt.

    Args:
        store: the store that all attempts share.
        rank: rank of this worker.
        size: number of workers.
        restarts: number of times that this worker's machine has restarted it.
        timeout_seconds: longest wait for the other workers.

    Raises:
        UserError: a worker did not appear in time.
    """
    deadline = monotonic() + timeout_seconds
    if rank == 0:
        return _name_attempt(store, size, restarts, timeout_seconds, deadline)
    ticket, answered = token_hex(8), ""
    while monotonic() < deadline:
        name = store.get("attempt").decode() if store.check(["attempt"]) else ""
        if name != answered:
            store.set(f"{name}/ticket/{rank}", json.dumps([ticket, restarts]))
            answered = name
        if name and store.check([f"{name}/confirmed"]):
            tickets, restarted = json.loads(store.get(f"{name}/confirmed"))
            if tickets[rank - 1] == ticket:
                return name, restarted
        sleep(POLL_SECONDS)
    raise UserError(f"worker 0 of {size} has not come within {timeout_seconds:g} seconds")


def _name_attempt(
    store: Store, size: int, restarts: int, timeout_seconds: float, deadline: float
) -> tuple[str, bool]:
    restarted, name = restarts > 0 or store.check(["attempt"]), token_hex(8)
    store.set("attempt", name)
    tickets = []
    for other in range(1, size):
        key = f"{name}/ticket/{other}"
        while not store.check([key]):
            if monotonic() > deadline:
                raise UserError(
                    f"worker {other} of {size} has not come within {timeout_seconds:g} seconds"
                )
            sleep(POLL_SECONDS)
        ticket, its_restarts = json.loads(store.get(key))
        restarted = restarted or its_restarts > 0
        tickets.append(ticket)
    store.set(f"{name}/confirmed", json.dumps([tickets, restarted]))
    return name, restarted

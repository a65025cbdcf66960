"""Which attempt of a run workers of torchrun belong to, so that they never meet an earlier one's.

torchrun's store outlives its attempts, and TORCHELASTIC_RESTART_COUNT counts the failures of one
machine's workers: after a worker has died, the machines' counts differ. So the workers agree on a
name. The first one draws it; every other one answers it with a ticket of its own, and has joined
when the first one has confirmed that ticket: a name that is left over has never seen it.
"""

from __future__ import annotations

import json
from secrets import token_hex
from time import monotonic, sleep

from torch._C._distributed_c10d import Store

from thinwire.errors import UserError

LOOK_SECONDS = 0.05


def agreed_attempt(
    store: Store, rank: int, size: int, restarts: int, patience_seconds: float
) -> tuple[str, bool]:
    """The name of this attempt, and whether one came before it.

    Args:
        store: that all attempts share.
        rank: this worker.
        size: how many there are.
        restarts: how often this worker's machine has started it again.
        patience_seconds: how long to wait for the others.

    Raises:
        UserError: a worker has not come.
    """
    deadline = monotonic() + patience_seconds
    if rank == 0:
        return _lead(store, size, restarts, patience_seconds, deadline)
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
        sleep(LOOK_SECONDS)
    raise UserError(f"worker 0 of {size} has not come within {patience_seconds:g} seconds")


def _lead(
    store: Store, size: int, restarts: int, patience_seconds: float, deadline: float
) -> tuple[str, bool]:
    restarted, name = restarts > 0 or store.check(["attempt"]), token_hex(8)
    store.set("attempt", name)
    tickets = []
    for other in range(1, size):
        key = f"{name}/ticket/{other}"
        while not store.check([key]):
            if monotonic() > deadline:
                raise UserError(
                    f"worker {other} of {size} has not come within {patience_seconds:g} seconds"
                )
            sleep(LOOK_SECONDS)
        ticket, its_restarts = json.loads(store.get(key))
        restarted = restarted or its_restarts > 0
        tickets.append(ticket)
    store.set(f"{name}/confirmed", json.dumps([tickets, restarted]))
    return name, restarted

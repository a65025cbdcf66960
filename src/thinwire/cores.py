"""How many cores there are, and how processes share them."""

from __future__ import annotations

import os

from thinwire.errors import UserError

MOST_THREADS = 1024
"""Of a process: with many more, the libraries that start them end it."""


def num_cores() -> int:
    """The cores that this process may use: fewer than the machine's where its affinity says so."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def num_threads(asked: int, num_processes: int = 1) -> int:
    """Compute threads of each of some processes: as many as asked for; 0: its part of the cores.

    Raises:
        UserError: more than `MOST_THREADS`.
    """
    if asked > MOST_THREADS:
        raise UserError(f"{asked} threads were asked for, but it must be {MOST_THREADS:,} or fewer")
    return asked or max(1, num_cores() // num_processes)

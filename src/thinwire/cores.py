"""How many cores there are, and how processes share them."""

from __future__ import annotations

import os

from thinwire.errors import UserError

# A process may ask for this many threads, or for this many per core. More are of no use, and where
# the system starts no more, the libraries that ask for them end the process.
MOST_THREADS, MOST_THREADS_PER_CORE = 64, 4


def num_cores() -> int:
    """The cores that this process may use: fewer than the machine's where its affinity says so."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def num_threads(asked: int, num_processes: int = 1) -> int:
    """Compute threads of each of some processes: as many as asked for; 0: its part of the cores.

    Raises:
        UserError: far more threads than cores were asked for.
    """
    most = max(MOST_THREADS, MOST_THREADS_PER_CORE * num_cores())
    if asked > most:
        raise UserError(
            f"{asked} threads were asked for, but it must be {most:,} or fewer on "
            f"{num_cores()} {'core' if num_cores() == 1 else 'cores'}"
        )
    return asked or max(1, num_cores() // num_processes)

"""A child process ends with its parent, however the parent ends.

The child holds the reading end of a pipe whose writing end only the parent has: when the parent is
gone, even by kill -9, reading ends, and the child ends itself. On Linux the kernel sees to it too,
also for a child that has been stopped.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from threading import Thread

_PR_SET_PDEATHSIG = 1


def end_with_parent(lifeline: int) -> None:
    """In a child: end as soon as the parent has ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        os.read(lifeline, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    Thread(target=watch, name="lifeline", daemon=True).start()

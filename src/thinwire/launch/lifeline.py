"""A child process ends with its parent, however the parent ends.

The child has the reading end of a pipe, and only the parent has the writing end. When the parent
ends, even by kill -9, the pipe is closed, and the child kills itself. On Linux the kernel kills the
child too, even if it has been stopped (SIGSTOP).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from threading import Thread

_PR_SET_PDEATHSIG = 1


def end_with_parent(lifeline: int) -> None:
    """Make this child process end as soon as its parent has ended.

    Args:
        lifeline: the descriptor of the reading end of the pipe.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        os.read(lifeline, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    Thread(target=watch, name="lifeline", daemon=True).start()

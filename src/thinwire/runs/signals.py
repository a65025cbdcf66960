"""Ctrl+C, SIGTERM and SIGHUP end a run after the step at hand; a second Ctrl+C or SIGTERM at once.

SIGHUP says that the terminal is gone, often several times. It never ends a run at once; what would
still be written to the terminal is thrown away, for it would fail. Whoever started the run with
nohup does not want it to end: an ignored SIGHUP stays ignored.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def handled() -> list[signal.Signals]:
    """Those of them that this process should handle."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [s for s in STOPPING if s is not signal.SIGHUP or not ignored]


def hang_up() -> None:
    """Throw away what is written to the terminal from now on."""
    for descriptor in (1, 2):
        try:
            os.ttyname(descriptor)  # fails where it is a file or a pipe
        except OSError as error:
            if error.errno != errno.EIO:  # which is what a terminal that is gone says
                continue
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, descriptor)
        os.close(nothing)


class Stoppable(Protocol):
    """What looks at `stop_asked` between its steps."""

    stop_asked: bool


@contextmanager
def stop_on_signals(run: Stoppable) -> Iterator[None]:
    """While inside, the first signal sets `run.stop_asked`, the second raises KeyboardInterrupt."""

    def ask(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            hang_up()
        elif run.stop_asked:
            raise KeyboardInterrupt
        run.stop_asked = True

    try:
        before = {s: signal.signal(s, ask) for s in handled()}
    except ValueError:  # not the main thread: whoever runs that one handles signals
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Ctrl+C, SIGTERM and SIGHUP end a run after its current step; a second Ctrl+C or SIGTERM at once.

SIGHUP means that the terminal is gone, and often comes several times. It never ends a run at once.
Further output to the terminal is discarded, because writing it would fail. A run that was started
with nohup must not end: an ignored SIGHUP stays ignored.
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
    """The signals among `STOPPING` that this process should handle."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [s for s in STOPPING if s is not signal.SIGHUP or not ignored]


def hang_up() -> None:
    """Discard everything that is written to the terminal from now on."""
    for descriptor in (1, 2):
        try:
            os.ttyname(descriptor)  # fails where it is a file or a pipe
        except OSError as error:
            if error.errno != errno.EIO:  # EIO: it is a terminal that is gone
                continue
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, descriptor)
        os.close(nothing)


class Stoppable(Protocol):
    """An object that checks `stop_asked` between its steps."""

    stop_asked: bool


@contextmanager
def stop_on_signals(run: Stoppable) -> Iterator[None]:
    """Inside, the first signal sets `run.stop_asked`, and the second raises KeyboardInterrupt."""

    def ask(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            hang_up()
        elif run.stop_asked:
            raise KeyboardInterrupt
        run.stop_asked = True

    try:
        before = {s: signal.signal(s, ask) for s in handled()}
    except ValueError:  # not the main thread, which is the only one that may handle signals
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

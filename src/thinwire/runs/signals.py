"""Ctrl+C and SIGTERM end a run after the step at hand; a second one ends it at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol


class Stoppable(Protocol):
    """What looks at `stop_asked` between its steps."""

    stop_asked: bool


@contextmanager
def stop_on_signals(run: Stoppable) -> Iterator[None]:
    """While inside, the first signal sets `run.stop_asked`, the second raises KeyboardInterrupt."""

    def ask(number: int, frame: FrameType | None) -> None:
        if run.stop_asked:
            raise KeyboardInterrupt
        run.stop_asked = True

    try:
        before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever runs that one handles signals
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""The process of `thinwire` and of `python -m thinwire`: Ctrl+C ends it well from start to end.

While the command line is being imported, nothing else handles Ctrl+C; once the command is over, it
just ends the process. Where Python loses it in between, it is sent again.
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (`sys.argv` by default) and return its exit status."""
    try:
        try:
            sys.unraisablehook = send_again
            from thinwire.cli.app import main as run

            return run(argv)
        finally:  # inside the other, for Ctrl+C may come here, too
            if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
    except KeyboardInterrupt:
        with suppress(OSError, ValueError):  # standard error may be full, gone or closed
            print("thinwire: interrupted", file=sys.stderr, flush=True)
        return 130


def send_again(lost: UnraisableHookArgs) -> None:
    """Have Ctrl+C come again that came in a callback, in which Python can raise nothing.

    Python would say "Exception ignored in", with a traceback, and go on.
    """
    if lost.exc_type is KeyboardInterrupt:
        _thread.start_new_thread(_interrupt_later, ())
    else:
        sys.__unraisablehook__(lost)


def _interrupt_later() -> None:
    """Press Ctrl+C once the main thread has left the callback; before, it would be lost again."""
    thread, inside = threading.main_thread().ident or 0, True
    while inside:
        time.sleep(0.01)
        frame = sys._current_frames().get(thread)
        inside = False
        while frame is not None and not inside:
            inside, frame = frame.f_code is send_again.__code__, frame.f_back
    signal.pthread_kill(thread, signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())

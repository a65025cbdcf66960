"""Processes that a command starts on this machine, and that are gone when it ends, however it ends.

A child holds the reading end of a pipe whose writing end only the parent has: when the parent is
gone, even by kill -9, reading ends, and the child ends itself. On Linux the kernel sees to it too,
also for a child that has been stopped.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from thinwire.runs.signals import handled, hang_up

GRACE_SECONDS = 10.0


class Children:
    """The processes of one command; leaving the block ends those that still run."""

    def __init__(self) -> None:
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.folder = Path(tempfile.mkdtemp(prefix="thinwire-"))
        self._lifeline, self._held = os.pipe()

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()
        os.close(self._held)
        os.close(self._lifeline)
        for file in self.folder.iterdir():
            file.unlink()
        self.folder.rmdir()

    def start(
        self,
        name: str,
        role: str,
        arguments: Mapping[str, Any],
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start `python -m thinwire.cli.child` with `arguments`; a taken name is taken over.

        Args:
            name: what to call the process in a sentence: "worker 2".
            role: which function of `thinwire.cli.child` it runs.
            arguments: that function's arguments, fit for JSON.
            environment: variables besides this process's own.
        """
        file = self.folder / f"{name.replace(' ', '-')}.json"
        file.write_text(json.dumps({"role": role, "arguments": dict(arguments)}), encoding="utf-8")
        command = [sys.executable, "-m", "thinwire.cli.child", str(file), str(self._lifeline)]
        # A session of its own: Ctrl+C on the terminal reaches the parent, which passes it on once.
        self.processes[name] = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            pass_fds=[self._lifeline],
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
        return self.processes[name]

    def signal(self, number: int) -> None:
        """Send a signal to every child that runs."""
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(number)

    def end(self) -> None:
        """Ask every child to stop; kill those that do not."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)
        for process in self.processes.values():
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def passing_signals_on(children: Children) -> Iterator[list[int]]:
    """Inside, Ctrl+C, SIGTERM and SIGHUP go to the children; the list holds those that came."""
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            hang_up()
        received.append(number)
        children.signal(number)

    before = {s: signal.signal(s, pass_on) for s in handled()}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def how_it_ended(status: int) -> str:
    """A process's exit status in words."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"

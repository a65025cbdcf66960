"""Child processes of a command. They end when the command ends, even if it is killed.

Each child gets the reading end of a pipe (`lifeline.py`), whose writing end only the parent has.
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
    """The child processes of a command. Leaving the block ends those that still run."""

    def __init__(self) -> None:
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.folder = Path(tempfile.mkdtemp(prefix="thinwire-"))
        self._lifeline, self._write_end = os.pipe()

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()
        os.close(self._write_end)
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
        """Start `python -m thinwire.cli.child`.

        Args:
            name: the name of the process in messages, such as "worker 2". It replaces an earlier
                process of the same name.
            role: the name of the function of `thinwire.cli.child` to run.
            arguments: the arguments of that function, which can be written as JSON.
            environment: variables to add to this process's environment.
        """
        file = self.folder / f"{name.replace(' ', '-')}.json"
        file.write_text(json.dumps({"role": role, "arguments": dict(arguments)}), encoding="utf-8")
        command = [sys.executable, "-m", "thinwire.cli.child", str(file), str(self._lifeline)]
        # In a new session, so that Ctrl+C reaches only the parent, which forwards it.
        self.processes[name] = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            pass_fds=[self._lifeline],
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
        return self.processes[name]

    def signal(self, number: int) -> None:
        """Send a signal to every running child."""
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(number)

    def end(self) -> None:
        """Ask every child to stop, and kill those that do not."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)
        for process in self.processes.values():
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def forwarding_signals(children: Children) -> Iterator[list[int]]:
    """In the block, Ctrl+C, SIGTERM and SIGHUP are forwarded to the children.

    Yields:
        A list of the signals received so far.
    """
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            hang_up()
        received.append(number)
        children.signal(number)

    before = {s: signal.signal(s, forward) for s in handled()}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def describe_exit(status: int) -> str:
    """Describe the exit status of a process in words."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"

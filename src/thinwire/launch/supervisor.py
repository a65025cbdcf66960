"""Servers and workers of an asynchronous run.

`run_async` starts them on this machine and supervises them:

- A worker that dies is replaced by a worker of the same name, which takes over its part of the
  text. A worker that has been stopped (SIGSTOP) for longer than `exchange.timeout_seconds` is
  killed first.
- A server that is killed is started again, at the same port, from its newest checkpoint. So is a
  follower that was asked to stop, after it has sent its rows to the first server.
- A process that ends with an error message or a traceback ends the run with its exit status.

This module does not import torch, which takes seconds, so that the processes start at once.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import Popen
from time import monotonic, sleep
from types import FrameType
from typing import Any

from thinwire.config import RunConfig
from thinwire.console import print_line
from thinwire.cores import num_threads
from thinwire.errors import UserError
from thinwire.launch.children import GRACE_SECONDS, Children, describe_exit
from thinwire.runs.signals import handled, hang_up

# After this number of restarts, something is wrong that restarting does not repair.
MAX_RESTARTS = 100
POLL_SECONDS = 0.1
INTERRUPTED = 130


@dataclass
class _Child:
    """A supervised process."""

    name: str
    role: str
    arguments: dict[str, Any]
    rank: int = 0
    stopped_since: float | None = None


def run_async(data: Path, out: Path, config: RunConfig, *, resume: bool) -> None:
    """Start the servers and workers of a run on this machine, and wait until it has ended.

    Raises:
        SystemExit: a process has ended with an error message; with the status of that process. 130
            after Ctrl+C, when the server has saved.
        UserError: processes were killed too often.
    """
    with Children() as children:
        supervisor = Supervisor(children, data, out, config, resume)
        with supervisor.forwarding_signals():
            supervisor.run()
    if supervisor.received:
        raise SystemExit(INTERRUPTED)


class Supervisor:
    """Supervises the processes of a run.

    Args:
        children: starts the processes.
        data: the data folder.
        out: the run folder.
        config: all settings.
        resume: continue from the newest checkpoint.
    """

    def __init__(
        self,
        children: Children,
        data: Path,
        out: Path,
        config: RunConfig,
        resume: bool,
    ) -> None:
        self.children, self.out = children, out
        self.received: list[int] = []
        """The signals that were forwarded."""
        self.timeout_seconds = config.exchange.timeout_seconds
        W, M = config.run.workers, config.exchange.servers
        threads = num_threads(config.run.threads, W)
        self._port_files = [str(children.folder / f"port-{shard}") for shard in range(M)]
        common = {"data": str(data), "port_files": self._port_files}
        settings = {"settings": asdict(config), "out": str(out)}
        servers = [
            _Child(
                _server_name(shard, M),
                "server",
                {**common, **settings, "resume": resume, "shard": shard},
            )
            for shard in range(M)
        ]
        workers = [
            _Child(
                f"worker {w}",
                "worker",
                {**common, "name": f"worker {w}", "threads": threads},
                rank=w,
            )
            for w in range(W)
        ]
        self._supervised = [*servers, *workers]
        self._first_server = servers[0]
        self._restarts = 0

    @contextmanager
    def forwarding_signals(self) -> Iterator[None]:
        """In the block, signals that stop a run are forwarded to the first server only.

        The first server tells the other processes.
        """

        def forward(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGHUP:
                hang_up()
            self.received.append(number)
            first_server = self.children.processes.get(self._first_server.name)
            if first_server is not None and first_server.poll() is None:
                first_server.send_signal(number)

        before = {s: signal.signal(s, forward) for s in handled()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(self) -> None:
        """Start all processes, and supervise them until the first server has ended successfully."""
        for child in self._supervised:
            self._start(child)
        while (status := self._process(self._first_server).poll()) != 0:
            if status is not None and (
                self.received or not self._restart(self._first_server, status)
            ):
                # Its own status, for example that it could not save, must not be lost.
                raise SystemExit(status if status > 0 else INTERRUPTED)
            if not self.received:
                self._check_others()
            sleep(POLL_SECONDS)
        # The first server has told the others that the run has ended.
        deadline = monotonic() + GRACE_SECONDS
        while monotonic() < deadline and any(
            self._process(child).poll() is None for child in self._supervised
        ):
            sleep(POLL_SECONDS)

    def _check_others(self) -> None:
        for child in self._supervised:
            if child is self._first_server:
                continue
            status = self._process(child).poll()
            if status is None:
                self._kill_if_stopped_too_long(child)
            elif status != 0 and not self._restart(child, status):
                raise SystemExit(status)

    def _restart(self, child: _Child, status: int) -> bool:
        """Restart a process that was killed; False: it has ended by itself."""
        if status >= 0 and not (child is not self._first_server and status == INTERRUPTED):
            return False
        self._restarts += 1
        if self._restarts > MAX_RESTARTS:
            raise UserError(
                f"{child.name} {describe_exit(status)}, and processes of this run have been "
                f"started again {MAX_RESTARTS} times: something ends them"
            )
        if child.role == "server":
            child.arguments["resume"] = (self.out / "config.toml").exists()
        print_line(
            f"{child.name} {describe_exit(status)}; it is started again.",
        )
        child.stopped_since = None
        self._start(child)
        return True

    def _kill_if_stopped_too_long(self, child: _Child) -> None:
        """Kill a process that has been stopped (SIGSTOP) too long: other processes wait for it."""
        process = self._process(child)
        if not _is_stopped(process.pid):
            child.stopped_since = None
        elif child.stopped_since is None:
            child.stopped_since = monotonic()
        elif monotonic() - child.stopped_since > self.timeout_seconds:
            process.kill()

    def _start(self, child: _Child) -> None:
        self.children.start(
            child.name, child.role, child.arguments, {"LOCAL_RANK": str(child.rank)}
        )

    def _process(self, child: _Child) -> Popen[bytes]:
        return self.children.processes[child.name]


def _server_name(shard: int, count: int) -> str:
    return "the server" if count == 1 else f"server {shard}"


def _is_stopped(pid: int) -> bool:
    """Whether a process has been stopped (SIGSTOP). False on systems without /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "T"

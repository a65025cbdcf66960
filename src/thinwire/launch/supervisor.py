"""Servers and workers of an asynchronous run.

`run_async` starts them all on this machine and looks after them:

- a worker that dies is replaced by one of its name, which takes over its place; one that has been
  stopped for longer than `exchange.timeout_seconds` is killed first;
- a server that is killed is started again, at the same port, from its newest checkpoint; so is one
  that follows and was asked to stop, after it has handed its rows over;
- whatever ends with a sentence of its own, or a traceback, ends the run with its exit status.

Nothing here needs torch, which takes seconds to import: the processes that do start meanwhile.
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
from thinwire.launch.children import GRACE_SECONDS, Children, how_it_ended
from thinwire.runs.signals import handled, hang_up

# After so many deaths something is wrong that starting again does not mend.
MOST_RESTARTS = 100
LOOK_SECONDS = 0.1
INTERRUPTED = 130


@dataclass
class _Child:
    """A process that is looked after."""

    name: str
    role: str
    arguments: dict[str, Any]
    rank: int = 0
    stopped_since: float | None = None


def run_async(data: Path, out: Path, config: RunConfig, *, resume: bool) -> None:
    """Start the servers and workers of a run on this machine, and wait until it has ended.

    Raises:
        SystemExit: a process has ended with a sentence of its own, and its status; 130 after
            Ctrl+C, when the server has saved.
        UserError: processes die again and again.
    """
    with Children() as children:
        supervisor = Supervisor(children, data, out, config, resume)
        with supervisor.passing_signals_on():
            supervisor.run()
    if supervisor.received:
        raise SystemExit(INTERRUPTED)


class Supervisor:
    """Looks after the processes of a run.

    Args:
        children: starts them.
        data: the data folder.
        out: the run folder.
        config: all settings.
        resume: go on from the newest step.
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
        """The signals that have been passed on."""
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
        self._looked_after = [*servers, *workers]
        self._lead = servers[0]
        self._restarts = 0

    @contextmanager
    def passing_signals_on(self) -> Iterator[None]:
        """Inside, all signals that stop a run go to the first server, which tells the others."""

        def pass_on(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGHUP:
                hang_up()
            self.received.append(number)
            lead = self.children.processes.get(self._lead.name)
            if lead is not None and lead.poll() is None:
                lead.send_signal(number)

        before = {s: signal.signal(s, pass_on) for s in handled()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(self) -> None:
        """Until the first server has ended well."""
        for child in self._looked_after:
            self._start(child)
        while (status := self._process(self._lead).poll()) != 0:
            if status is not None and (self.received or not self._restart(self._lead, status)):
                # What it says itself, as that it could not save, is not covered up.
                raise SystemExit(status if status > 0 else INTERRUPTED)
            if not self.received:
                self._look_at_others()
            sleep(LOOK_SECONDS)
        # They have been told that the run has ended.
        deadline = monotonic() + GRACE_SECONDS
        while monotonic() < deadline and any(
            self._process(child).poll() is None for child in self._looked_after
        ):
            sleep(LOOK_SECONDS)

    def _look_at_others(self) -> None:
        for child in self._looked_after:
            if child is self._lead:
                continue
            status = self._process(child).poll()
            if status is None:
                self._look_at_stopped(child)
            elif status != 0 and not self._restart(child, status):
                raise SystemExit(status)

    def _restart(self, child: _Child, status: int) -> bool:
        """Start a process again that was killed; False: it has ended by itself."""
        if status >= 0 and not (child is not self._lead and status == INTERRUPTED):
            return False
        self._restarts += 1
        if self._restarts > MOST_RESTARTS:
            raise UserError(
                f"{child.name} {how_it_ended(status)}, and processes of this run have been started "
                f"again {MOST_RESTARTS} times: something ends them"
            )
        if child.role == "server":
            child.arguments["resume"] = (self.out / "config.toml").exists()
        print_line(
            f"{child.name} {how_it_ended(status)}; it is started again.",
        )
        child.stopped_since = None
        self._start(child)
        return True

    def _look_at_stopped(self, child: _Child) -> None:
        """Kill a process that has been stopped (SIGSTOP) for too long: others wait for it."""
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
    """Whether a process has been stopped; where there is no /proc, no."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "T"

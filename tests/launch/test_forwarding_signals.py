"""Signals that reach the command that has started a run reach the processes that have to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from thinwire.config import RunConfig
from thinwire.launch import children as children_module
from thinwire.launch import supervisor as supervisor_module
from thinwire.launch.children import Children, forwarding_signals
from thinwire.launch.supervisor import Supervisor

ALL = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


class Process:
    """Stands in for a child; it ends when it is told to."""

    def __init__(self, status: int | None = None) -> None:
        self.status, self.signals, self.pid = status, list[int](), 0

    def poll(self) -> int | None:
        return self.status

    def send_signal(self, number: int) -> None:
        assert self.status is None, "it has ended"
        self.signals.append(number)

    def wait(self, timeout: float | None = None) -> int:
        return 0 if self.status is None else self.status


@pytest.fixture
def hung_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which module has thrown away what is written to the terminal."""
    found: list[str] = []
    for module in (children_module, supervisor_module):
        monkeypatch.setattr(module, "hang_up", lambda name=module.__name__: found.append(name))
    return found


@pytest.fixture
def children() -> Iterator[Children]:
    with Children() as found:
        yield found


def put(children: Children, **processes: Process) -> None:
    children.processes.update({n.replace("_", " "): p for n, p in processes.items()})  # type: ignore[misc]


@pytest.mark.parametrize("number", ALL)
def test_every_child_that_runs_is_told(
    number: signal.Signals, children: Children, hung_up: list[str]
) -> None:
    one, two, gone = Process(), Process(), Process(0)
    put(children, one=one, two=two, gone=gone)
    before = {s: signal.getsignal(s) for s in ALL}
    with forwarding_signals(children) as received:
        signal.raise_signal(number)
        signal.raise_signal(number)
    assert received == one.signals == two.signals == [number, number]
    assert gone.signals == []
    assert len(hung_up) == (2 if number == signal.SIGHUP else 0)
    assert {s: signal.getsignal(s) for s in ALL} == before


def supervisor(children: Children, out: Path, **sections: Any) -> Supervisor:
    config = RunConfig.from_dict({"run": {"workers": 2}, "exchange": {"kind": "async"}, **sections})
    return Supervisor(children, out / "data", out / "run", config, resume=False)


@pytest.mark.parametrize("number", ALL)
def test_the_first_server_alone_is_told(
    number: signal.Signals, children: Children, hung_up: list[str], tmp_path: Path
) -> None:
    """It saves, and tells the others; a worker that stopped first would be one too few."""
    watched = supervisor(children, tmp_path)
    with watched.forwarding_signals():
        signal.raise_signal(number)  # before there is a server
        server, worker = Process(), Process()
        put(children, the_server=server, worker_0=worker)
        signal.raise_signal(number)
        server.status = 130
        signal.raise_signal(number)
    assert watched.received == [number] * 3
    assert (server.signals, worker.signals) == ([number], [])
    assert len(hung_up) == (3 if number == signal.SIGHUP else 0)


def test_under_nohup_a_hangup_is_nobodys_end(
    children: Children, hung_up: list[str], tmp_path: Path
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        watched, server = supervisor(children, tmp_path), Process()
        put(children, the_server=server)
        with watched.forwarding_signals(), forwarding_signals(children) as received:
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert watched.received == received == server.signals == hung_up == []
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("status", "expected"), [(0, None), (130, 130), (2, 2), (-15, 130)])
def test_after_a_signal_the_end_of_the_first_server_is_not_mended(
    status: int,
    expected: int | None,
    children: Children,
    hung_up: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has saved (0 or 130), says why it could not (2), or was killed: nothing is started."""
    watched, started = supervisor(children, tmp_path), list[str]()

    def start(name: str, *rest: Any) -> None:
        started.append(name)
        children.processes[name] = Process()  # type: ignore[assignment]
        if len(started) == 3:  # all are there: the terminal is closed, and they end
            signal.raise_signal(signal.SIGHUP)
            for process in children.processes.values():
                process.status = status if process is children.processes["the server"] else 0  # type: ignore[attr-defined]

    monkeypatch.setattr(children, "start", start)
    with watched.forwarding_signals():
        if expected is None:
            watched.run()
        else:
            with pytest.raises(SystemExit) as ended:
                watched.run()
            assert ended.value.code == expected
    assert started == ["the server", "worker 0", "worker 1"]
    assert children.processes["the server"].signals == [signal.SIGHUP]  # type: ignore[attr-defined]

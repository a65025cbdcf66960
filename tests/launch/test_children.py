"""Processes that a command starts are gone when it ends, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from thinwire.launch import children as module
from thinwire.launch.children import Children, describe_exit

# What stands in for `python -m thinwire.cli.child JOB LIFELINE`: it says that it is there, then
# waits.
CHILD = """
import json, os, signal, sys, time
from pathlib import Path
from thinwire.launch.lifeline import end_with_parent
arguments = json.loads(Path(sys.argv[3]).read_text())["arguments"]
end_with_parent(int(sys.argv[4]))
if arguments.get("stubborn"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
told = []
signal.signal(signal.SIGINT, lambda number, frame: told.append(number))
there = Path(arguments["there"])
there.with_suffix(".tmp").write_text(json.dumps([os.getpid(), os.environ.get("LOCAL_RANK")]))
there.with_suffix(".tmp").rename(there)
while not told:
    time.sleep(0.01)
sys.exit(7)
"""

PARENT = """
import sys, time
from thinwire.launch.children import Children
sys.executable = sys.argv[1]
with Children() as children:
    for name in sys.argv[2:]:
        children.start(name, "role", {"there": name, "stubborn": True})
    time.sleep(60)
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter whose every program is CHILD."""
    (tmp_path / "child.py").write_text(textwrap.dedent(CHILD))
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path}/child.py" "$@"\n')
    fake.chmod(0o700)
    return fake


def pid_of(there: Path) -> int:
    end = monotonic() + 30
    while not there.exists():
        assert monotonic() < end
        sleep(0.02)
    pid: int = json.loads(there.read_text())[0]
    return pid


def wait_until_gone(is_running: Callable[[int], bool], *pids: int) -> None:
    end = monotonic() + 20
    while any(map(is_running, pids)):
        assert monotonic() < end
        sleep(0.02)


@pytest.fixture
def started(
    tmp_path: Path, python: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[subprocess.Popen[bytes], int]]:
    """`started(children, "a", stubborn=True)`: the process, once it is there."""
    monkeypatch.setattr(sys, "executable", str(python))

    def start(
        children: Children, name: str, **arguments: Any
    ) -> tuple[subprocess.Popen[bytes], int]:
        there = tmp_path / f"{name.replace(' ', '-')}-{len(children.processes)}"
        process = children.start(
            name, "role", {"there": str(there), **arguments}, {"LOCAL_RANK": "3"}
        )
        pid = pid_of(there)
        assert pid == process.pid and json.loads(there.read_text())[1] == "3"
        return process, pid

    return start


@pytest.mark.parametrize("stubborn", [False, True])
@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("how", ["returns", "raises"])
def test_none_is_left_after_the_block(
    stubborn: bool,
    stopped: bool,
    how: str,
    started: Any,
    is_running: Callable[[int], bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.3)
    expected = pytest.raises(ZeroDivisionError) if how == "raises" else _nothing_raised()
    with expected, Children() as children:
        folder = children.folder
        assert folder.stat().st_mode & 0o077 == 0  # nobody else may read it
        pids = [started(children, name, stubborn=stubborn)[1] for name in ("worker 0", "worker 1")]
        if stopped:
            os.kill(pids[0], signal.SIGSTOP)
        if how == "raises":
            raise ZeroDivisionError
    assert not any(map(is_running, pids)) and not folder.exists()


def _nothing_raised() -> Any:
    from contextlib import nullcontext

    return nullcontext()


def test_signals_reach_those_that_run(started: Any) -> None:
    with Children() as children:
        one, _ = started(children, "one")
        two, _ = started(children, "two")
        one.kill()
        one.wait()
        children.signal(signal.SIGINT)
        assert two.wait(20) == 7


def test_a_name_is_taken_over(started: Any) -> None:
    with Children() as children:
        first, _ = started(children, "worker 0")
        first.kill()
        first.wait()
        second, _ = started(children, "worker 0")
        assert children.processes == {"worker 0": second}


@pytest.mark.parametrize("stopped", [False, True])
def test_none_outlives_a_parent_that_is_killed(
    stopped: bool, tmp_path: Path, python: Path, launch: Any, is_running: Callable[[int], bool]
) -> None:
    """Nor does one that has been stopped, for which only the kernel can act."""
    names = [str(tmp_path / "a"), str(tmp_path / "b")]
    parent = launch("-c", PARENT, python, *names)
    pids = [pid_of(Path(name)) for name in names]
    parent.seen.update(pids)
    if stopped:
        os.kill(pids[0], signal.SIGSTOP)
    parent.process.kill()
    wait_until_gone(is_running, *pids)


def test_ends_in_words() -> None:
    assert describe_exit(0) == "ended with status 0"
    assert describe_exit(3) == "ended with status 3"
    assert describe_exit(-9) == "was killed by SIGKILL"
    assert describe_exit(-199) == "was killed by signal 199"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_passed_on(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that is gone reaches the children too, and silences it once."""
    sent: list[int] = []
    silenced: list[bool] = []
    monkeypatch.setattr(module, "hang_up", lambda: silenced.append(True))
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with Children() as children:
        monkeypatch.setattr(children, "signal", sent.append)
        with module.forwarding_signals(children) as received:
            signal.raise_signal(number)
            assert received == sent == [number]
        monkeypatch.undo()
    assert silenced == ([True] if number == signal.SIGHUP else [])
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_under_nohup_a_hangup_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Children() as children, module.forwarding_signals(children) as received:
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert received == []
    finally:
        signal.signal(signal.SIGHUP, before)

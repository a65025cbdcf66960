"""Real processes: started, looked into through /proc, and gone when the test ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

if not Path("/proc/self/stat").exists():
    pytest.skip("the tests look into /proc", allow_module_level=True)


def state_of(pid: int) -> tuple[str, int] | None:
    """A process's state and its parent; None: there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    state, parent = text.rpartition(")")[2].split()[:2]
    return state, int(parent)


def runs(pid: int) -> bool:
    """Whether a process is there, and not only because nobody has taken note of its end."""
    found = state_of(pid)
    return found is not None and found[0] not in "ZX"


def children_of(pid: int) -> list[int]:
    """The processes that a process has started, and that run."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    found = ((child, state_of(child)) for child in pids)
    return [child for child, state in found if state and state[1] == pid and runs(child)]


def descendants_of(pid: int) -> list[int]:
    found = children_of(pid)
    return [*found, *(pid for child in found for pid in descendants_of(child))]


class Launched:
    """A command that runs, with everything that it starts."""

    def __init__(self, folder: Path, args: tuple[object, ...], env: dict[str, str]) -> None:
        self.log = folder / "stderr.txt"
        self.folder = folder
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, args)],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, **env},
                start_new_session=True,
            )
        self.seen: set[int] = set()

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def until(self, condition: Callable[[], Any], seconds: float = 60.0) -> Any:
        """What the condition gives once it holds; meanwhile the command must run."""
        end = monotonic() + seconds
        while not (found := condition()):
            assert monotonic() < end, f"in vain: {self.said}"
            assert self.process.poll() is None, f"it has ended: {self.said}"
            sleep(0.05)
        return found

    def workers(self, count: int, marks: list[str]) -> list[int]:
        """The processes of the command whose arguments or environment hold each of the marks."""

        def find() -> list[int] | None:
            found = []
            for mark in marks:
                for pid in descendants_of(self.process.pid):
                    with suppress(OSError):
                        text = Path(f"/proc/{pid}/cmdline").read_bytes()
                        text += b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
                        if any(part.endswith(mark.encode()) for part in text.split(b"\0")):
                            found.append(pid)
                            break
            return found if len(found) == count else None

        pids: list[int] = self.until(find)
        self.seen.update(pids)
        return pids

    def end(self, seconds: float) -> int:
        """Wait for the end of the command; its exit status."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it goes on: {self.said}") from None

    def all_gone(self, seconds: float = 10.0) -> bool:
        """Whether no process that was seen is left, or soon none."""
        end = monotonic() + seconds
        while any(map(runs, self.seen)) and monotonic() < end:
            sleep(0.05)
        return not any(map(runs, self.seen))

    def kill_all(self) -> None:
        pids = {self.process.pid, *descendants_of(self.process.pid), *self.seen}
        for pid in filter(runs, pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    """`launch("-m", "thinwire", ...)`: Python with these arguments, in `tmp_path`."""
    launched: list[Launched] = []

    def start(*args: object, **env: str) -> Launched:
        launched.append(Launched(tmp_path, args, env))
        return launched[-1]

    yield start
    for command in launched:
        command.kill_all()


@pytest.fixture
def is_running() -> Callable[[int], bool]:
    """Whether a process is there."""
    return runs

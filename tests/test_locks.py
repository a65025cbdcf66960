"""One writer at a time, and nobody who died stands in the way."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from thinwire import locks
from thinwire.errors import UserError, require_posix
from thinwire.locks import LOCK_FILE, one_writer, only_writer

HOLD_AND_DIE = """
import os, signal, sys
from pathlib import Path
from thinwire.locks import only_writer
with only_writer(Path(sys.argv[1]), "it"):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_second_writer_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    run = tmp_path / "deep" / "run"
    with one_writer(run):
        sentence = rf"process {os.getpid()} on .* one writer at a time"
        with pytest.raises(UserError, match=sentence), one_writer(run):
            raise AssertionError("not reached")
        (run / "kept").touch()
    with one_writer(run):
        pass
    assert [path.name for path in run.iterdir()] == ["kept"]


def test_folders_that_stay_empty_are_removed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wrong"), one_writer(tmp_path / "deep" / "run"):
        raise ValueError("wrong")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    sentence = "is a file, and a run needs a folder"
    with pytest.raises(UserError, match=sentence), one_writer(tmp_path / "file"):
        raise AssertionError("not reached")


def test_the_lock_of_a_killed_process_does_not_stand_in_the_way(tmp_path: Path) -> None:
    file = tmp_path / LOCK_FILE
    subprocess.run([sys.executable, "-c", HOLD_AND_DIE, str(file)], check=False, timeout=60)
    assert file.exists()
    with only_writer(file, "it") as alone:
        assert alone
    assert not file.exists()


def test_a_full_disk_leaves_no_lock_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    file = tmp_path / LOCK_FILE
    with only_writer(file, "it") as alone:
        assert alone
        with (
            pytest.raises(UserError, match="another process is writing it"),
            only_writer(file, "it"),
        ):
            raise AssertionError("not reached")
    assert not file.exists()


def test_says_that_there_are_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import errno
    import fcntl

    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with only_writer(tmp_path / LOCK_FILE, "the run") as alone:
        assert not alone
    assert "has no locks" in " ".join(capsys.readouterr().err.split())


def test_other_systems_are_refused_in_a_sentence() -> None:
    require_posix("posix")
    with pytest.raises(UserError, match=r"POSIX systems \(Linux, macOS\) only"):
        require_posix("nt")


def test_an_interrupt_while_the_lock_is_taken_leaves_nothing(tmp_path: Path) -> None:
    """At any line of it, and then it comes."""
    line, came = 1, True
    while came:
        came = _interrupted_at(line, tmp_path / "run")
        assert list(tmp_path.iterdir()) == []
        line += 1
    assert line > 10


def _interrupted_at(line: int, run: Path) -> bool:
    """Whether the n-th line of taking the lock is reached, at which Ctrl+C is pressed."""
    seen = 0

    def local(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal seen
        if event == "line":
            seen += 1
            if seen == line:
                signal.raise_signal(signal.SIGINT)
        return local

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        taking = (locks._locked.__code__, locks._sign.__code__)
        return local if frame.f_code in taking else None

    inside, before = False, sys.gettrace()
    sys.settrace(trace)
    try:
        with one_writer(run):
            inside = True
    except KeyboardInterrupt:
        assert not inside
        return True
    finally:
        sys.settrace(before)
    return False

"""One writer at a time, and nobody who died stands in the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest

from thinwire.errors import UserError
from thinwire.report.write import write_report

from .conftest import history

PNG = b"\x89PNG\r\n\x1a\n"


def test_one_run_keeps_its_own_report(make_run) -> None:
    path = make_run()
    assert write_report([path]) == path / "report.html"
    assert (path / "report.html").read_text().startswith("<!doctype html>")
    assert (path / "report.png").read_bytes().startswith(PNG)


def test_several_runs_in_the_working_folder(
    make_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [
        make_run("$x_1^2$ \u65e5\u672c", history(bytes_sent=1000)),
        make_run("_hidden", []),
        make_run("b"),
    ]
    monkeypatch.chdir(tmp_path)
    assert write_report(paths) == Path("report.html")
    assert Path("report.png").read_bytes().startswith(PNG)


def test_another_place(make_run, tmp_path: Path) -> None:
    path = make_run()
    assert write_report([path], tmp_path / "new/page.html") == tmp_path / "new/page.html"
    assert (tmp_path / "new/page.png").exists()
    assert write_report([path], tmp_path / "new") == tmp_path / "new/report.html"


def test_without_matplotlib(
    make_run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    path = make_run()
    assert write_report([path]).exists()
    assert not (path / "report.png").exists()
    assert "pip install matplotlib" in " ".join(capsys.readouterr().err.split())


def test_a_picture_that_fails_leaves_the_one_before(
    make_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_run()
    write_report([path])
    before = (path / "report.png").read_bytes()

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("thinwire.files.os.fsync", full)
    monkeypatch.setattr("thinwire.report.write.write_whole", lambda path, text: None)
    with pytest.raises((OSError, UserError), match="No space left"):
        write_report([path])
    assert (path / "report.png").read_bytes() == before
    assert not list(path.glob("*.tmp"))


def test_no_run() -> None:
    with pytest.raises(UserError, match="at least 1"):
        write_report([])

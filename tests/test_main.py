"""Ctrl+C at any line of the command line's own code: one sentence at most, and a status."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

import thinwire.__main__ as process
from thinwire.cli import app
from thinwire.errors import UserError


@pytest.fixture(autouse=True)
def as_in_a_process() -> Iterator[None]:
    """What the end of a process would take along."""
    hook = sys.unraisablehook
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    sys.unraisablehook = hook
    signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupted_at(line: int, argv: list[str]) -> tuple[int, bool]:
    """The status, and whether Ctrl+C came, when the n-th line of app.py or of main is run.

    The two `try:` of main are left out, and lines from which on Ctrl+C just ends the process.
    """
    seen = -2

    def local(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal seen
        if event == "line" and signal.getsignal(signal.SIGINT) is not signal.SIG_DFL:
            seen += 1
            if seen == line:
                signal.raise_signal(signal.SIGINT)
        return local

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        ours = frame.f_code.co_filename == app.__file__ or frame.f_code is process.main.__code__
        return local if ours else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        status = process.main(argv)
    finally:
        sys.settrace(before)
    return status, seen >= line


@pytest.mark.parametrize(
    ("error", "usual"),
    [(None, 0), (UserError("no"), 2), (KeyboardInterrupt(), 130), (FileNotFoundError("x"), 2)],
    ids=repr,
)
def test_at_any_line_of_the_command_line(
    error: BaseException | None,
    usual: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(tokens: object) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(app, "run", run)
    found, line, came = set(), 1, True
    while came:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        status, came = interrupted_at(line, [])
        found.add(status)
        said = capsys.readouterr().err.splitlines()
        assert all(sentence.startswith("thinwire: ") for sentence in said)
        assert status != 130 or said[-1] == "thinwire: interrupted"
        assert status == 0 or 1 <= len(said) <= 2
        line += 1
    assert line > 10
    assert found == {usual, 130}


def test_while_the_command_line_is_imported() -> None:
    program = """
import builtins, sys
import thinwire.__main__ as process
plain = builtins.__import__
def interrupted(name, *rest):
    if name == "cyclopts":
        raise KeyboardInterrupt
    return plain(name, *rest)
builtins.__import__ = interrupted
sys.exit(process.main(["--version"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"thinwire: interrupted\n")


class Thing:
    """Something to be forgotten."""


def test_in_a_callback_of_python(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python loses it there; it comes again as soon as it can."""

    def run(tokens: object) -> None:
        thing = Thing()
        forgotten = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
        del thing
        assert forgotten() is None
        time.sleep(60)  # until it comes
        raise AssertionError("not reached")

    monkeypatch.setattr(app, "run", run)
    assert process.main([]) == 130
    assert capsys.readouterr().err == "thinwire: interrupted\n"


def test_once_the_command_is_over_it_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "run", lambda tokens: None)
    assert process.main([]) == 0
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


def test_it_stays_ignored_where_a_shell_wants_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "run", lambda tokens: signal.raise_signal(signal.SIGINT))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert process.main([]) == 0
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_other_errors_in_callbacks_are_told_as_ever(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError

    def run(tokens: object) -> None:
        thing = Thing()
        kept: Callable[[], object] = weakref.ref(thing, fail)
        del thing
        assert kept() is None

    monkeypatch.setattr(app, "run", run)
    assert process.main([]) == 0
    assert "ZeroDivisionError" in capsys.readouterr().err

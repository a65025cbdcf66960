"""What the command line looks like from outside: help, exit statuses, one sentence an error."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import ModuleSpec
from inspect import getdoc
from pathlib import Path
from types import ModuleType

import pytest

import thinwire
from thinwire.cli import app
from thinwire.errors import UserError


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Register a verb, `stumble`, whose function raises what it is given."""

    def register(error: BaseException) -> None:
        def stumble(*, width: int = 1) -> None:
            """Fall.

            At length.
            """
            raise error

        module = ModuleType("stumbling")
        module.__spec__ = ModuleSpec("stumbling", None)
        module.__dict__["stumble"] = stumble
        monkeypatch.setitem(sys.modules, "stumbling", module)
        monkeypatch.setitem(app.VERBS, "stumble", app.Verb("stumbling:stumble", "Fall."))

    return register


def test_help_lists_every_verb_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name, verb in app.VERBS.items():
        assert f"{name} {verb.summary}" in " ".join(shown.replace("│", " ").split())


@pytest.mark.parametrize("name", app.VERBS)
def test_summary_is_the_verbs_own(name: str) -> None:
    module, _, function = app.VERBS[name].function.partition(":")
    docstring = getdoc(getattr(import_module(module), function)) or ""
    assert docstring.splitlines()[0] == app.VERBS[name].summary


def test_help_of_a_verb_is_its_docstring(
    verb: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    verb(AssertionError("not called"))
    assert app.main(["stumble", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "At length." in shown
    assert "--width" in shown


def test_no_arguments_print_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main([]) == 0
    assert "Usage: thinwire" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["--version"]) == 0
    assert capsys.readouterr().out == f"thinwire {thinwire.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["stumbel"], "unknown verb: stumbel; did you mean stumble?"),
        (["stumble", "--widht", "3"], "unknown flag: --widht; did you mean --width?"),
        (["stumble", "--width", "x"], "--width is 'x', and must be a whole number"),
        (["train", "data", "--out"], "--out"),
        (["train", "data", "--config"], "--config"),
        (["stumble"], "[3] rows, and 4 asked for."),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(
    argv: list[str],
    sentence: str,
    verb: Callable[[BaseException], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    verb(UserError("[3] rows, and 4 asked for."))
    assert app.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("thinwire: ")
    assert sentence in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.txt"), "a.txt: No such"),
        (PermissionError(errno.EACCES, "Permission denied", "a.txt"), "a.txt: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "thinwire: No space left on device"),
        (OSError("the index does not answer"), "thinwire: the index does not answer"),
    ],
)
def test_what_the_system_refuses_is_one_sentence(
    error: OSError,
    sentence: str,
    verb: Callable[[BaseException], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    verb(error)
    assert app.main(["stumble"]) == 2
    assert sentence in capsys.readouterr().err


def test_interrupt_is_130(verb: Callable[[BaseException], None]) -> None:
    verb(KeyboardInterrupt())
    assert app.main(["stumble"]) == 130


def test_defects_keep_their_traceback(verb: Callable[[BaseException], None]) -> None:
    verb(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        app.main(["stumble"])


PRINTS_MUCH = """
import sys
from thinwire.cli import app
app.build = lambda verb: lambda tokens: print("word " * 100_000)
sys.exit(app.main([]))
"""


def test_a_reader_that_leaves_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", PRINTS_MUCH], stdout=writing, stderr=subprocess.PIPE, timeout=60
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_reader_that_leaves_is_no_error_to_what_prints_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """rich, which prints help, ends the process with 1 then."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        for argv in ([], ["train", "--help"]):
            assert app.main(argv) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_under_standard_output() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", PRINTS_MUCH], stdout=full, stderr=subprocess.PIPE, timeout=60
        )
    assert (done.returncode, done.stderr) == (2, b"thinwire: No space left on device\n")


def test_output_in_an_encoding_that_lacks_a_character(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    app._print_in_any_encoding()
    assert app.guarded(lambda: print("caf\u00e9 \udcff")) == 0
    assert written.getvalue() == b"caf\\xe9 \\udcff\n"


@pytest.mark.parametrize("name", app.VERBS)
def test_help_shows_how_a_verb_is_called_and_an_example(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert app.main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"Usage: thinwire {name}")
    _, _, examples = shown.partition("\nExamples:\n")
    assert f"thinwire {name}" in examples
    panels = shown.partition("Examples:")[0].splitlines()
    assert max(len(line) for line in panels) <= 80
    assert "no-check_replicas" not in shown


def test_help_of_train_has_a_panel_for_each_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    for title in ("Run", "Model", "Loss", "Data", "Optimiser", "Evaluation", "Checkpoints"):
        assert f"╭─ {title} ─" in shown
    for flag in ("--exchange ", "--no-model.tied", "--no-check-replicas", "--codec "):
        assert flag in shown


def test_help_of_plan_leaves_out_what_it_does_not_heed(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["plan", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--model.width" in shown and "--link" in shown
    for flag in ("--seconds", "--eval.tokens", "--optim.lr", "--checkpoint.keep"):
        assert flag not in shown


def test_lists_and_what_may_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    for name, line in (
        ("prepare", "TEXT... --out DATA [OPTIONS]"),
        ("report", "RUN... [OPTIONS]"),
        ("score", "RUN [FILE] [OPTIONS]"),
    ):
        assert app.main([name, "--help"]) == 0
        assert f"Usage: thinwire {name} {line}\n" in capsys.readouterr().out


def test_a_prompt_without_its_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["generate", "run", "Once upon"]) == 2
    assert "'Once upon' is left over: a text goes after --prompt" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in app.VERBS)
    assert "model.width" in script


def test_a_sentence_is_one_line_that_no_terminal_obeys(
    verb: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    verb(UserError("there is no file a\nb\x1b[2J\u202ec"))
    assert app.main(["stumble"]) == 2
    assert capsys.readouterr().err == "thinwire: there is no file a\\nb\\x1b[2J\\u202ec\n"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
        RuntimeError("Storage size calculation overflowed with sizes=[14, 4611686018427387904]"),
    ],
)
def test_too_little_memory_is_a_sentence(
    verb: Callable[[BaseException], None],
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
) -> None:
    verb(error)
    assert app.main(["stumble"]) == 2
    assert capsys.readouterr().err.startswith("thinwire: there is not enough memory")


def test_too_few_descriptors_are_a_sentence_whoever_says_it(
    verb: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    verb(RuntimeError("unable to open file <a> in read-only mode: Too many open files (24)"))
    assert app.main(["stumble"]) == 2
    assert capsys.readouterr().err == "thinwire: Too many open files\n"


def test_a_full_disk_under_standard_error_changes_no_status(
    verb: Callable[[BaseException], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    verb(UserError("no"))
    assert app.main(["stumble"]) == 2

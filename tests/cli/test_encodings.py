"""Names and texts that UTF-8 or the output cannot hold: a sentence or an escape, no traceback."""

from __future__ import annotations

import io
import os
import shutil
import sys
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from thinwire.cli import app
from thinwire.inference.trained_model import TrainedModel

LATIN = os.fsdecode(b"caf\xe9")
"""The name `café` in Latin-1, which is not UTF-8."""


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a command runs, and in which it may write."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: list[str]) -> tuple[int, str]:
    """A command's status, and what it says on standard error, which escapes as Python's does."""
    written = io.BytesIO()
    errors = io.TextIOWrapper(written, "utf-8", errors="backslashreplace", write_through=True)
    with redirect_stderr(errors):
        status = app.main(command)
    return status, written.getvalue().decode("utf-8")


def test_generate_prints_escapes_where_the_output_is_ascii(
    toy_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(TrainedModel, "stream", lambda *_, **__: iter(["caf\u00e9 ", "\u732b"]))
    assert app.main(["generate", str(toy_run), "--prompt", "The"]) == 0
    assert written.getvalue() == b"caf\\xe9 \\u732b\n"


@pytest.mark.parametrize(
    "command",
    [
        ["prepare", LATIN, "--out", "data"],
        ["train", LATIN, "--out", "run"],
        ["train", LATIN, "--out", "run", "--config", LATIN],
        ["serve", LATIN, "--out", "run", "--listen", "127.0.0.1:1"],
        ["work", LATIN, "--servers", "127.0.0.1:1"],
        ["eval", LATIN],
        ["score", LATIN],
        ["generate", LATIN],
        ["adapt", LATIN, LATIN, "--out", "run"],
        ["plan", LATIN],
        ["report", LATIN],
    ],
    ids=lambda command: " ".join(command[:1] + command[2:]).replace(LATIN, "latin"),
)
def test_a_path_that_is_not_there_and_not_utf8(command: list[str], beside: Path) -> None:
    status, said = run(command)
    assert status == 2
    assert said.startswith("thinwire: ")
    assert said.count("\n") == 1
    assert "caf\\udce9" in said
    assert not list(beside.rglob("*"))


def test_a_run_whose_name_is_not_utf8_is_read_or_refused_with_a_sentence(
    toy_run: Path, beside: Path
) -> None:
    """The library that reads tensors takes no such path; what needs none of them works."""
    shutil.copytree(toy_run, LATIN)
    for command in (["eval", LATIN], ["generate", LATIN, "--tokens", "2"]):
        status, said = run(command)
        assert (status, said.count("\n")) == (2, 1), said
        assert "is not valid UTF-8" in said
    status, said = run(["report", LATIN])
    assert status == 0, said
    assert (Path(LATIN) / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not list(beside.rglob("*.tmp"))


def test_a_data_folder_that_is_not_utf8_trains_nothing_and_leaves_nothing(
    toy_data: Path, beside: Path
) -> None:
    shutil.copytree(toy_data, LATIN)
    commands = [
        ["train", LATIN, "--out", "run", "--tokens", "100"],
        ["serve", LATIN, "--out", "run", "--listen", "127.0.0.1:0", "--tokens", "100"],
    ]
    for command in commands:
        status, said = run(command)
        assert status == 2
        assert "is not UTF-8, and config.toml, which is" in said
    assert not Path("run").exists()
    assert not list(beside.rglob("*.tmp"))


@pytest.mark.parametrize("out", [LATIN, f"deep/{LATIN}/run"], ids=["name", "parent"])
def test_no_run_folder_is_made_that_could_not_be_loaded(
    out: str, toy_data: Path, toy_run: Path, book: Path, beside: Path
) -> None:
    book.rename(beside / "text")
    for command in (
        ["train", str(toy_data), "--out", out, "--tokens", "300"],
        ["serve", str(toy_data), "--out", out, "--tokens", "300", "--listen", "127.0.0.1:0"],
        ["adapt", str(toy_run), "text", "--out", out],
    ):
        status, said = run(command)
        assert (status, said.count("\n")) == (2, 1), said
        assert "is not UTF-8, so what is saved there could not be loaded" in said
        assert [path.name for path in beside.iterdir()] == ["text"]


def test_a_run_that_was_given_a_name_that_is_not_utf8_is_not_resumed(
    toy_data: Path, toy_run: Path, beside: Path
) -> None:
    shutil.copytree(toy_run, LATIN)
    status, said = run(["train", str(toy_data), "--out", LATIN, "--resume", "--tokens", "99999"])
    assert (status, said.count("\n")) == (2, 1) and "is not UTF-8, so what is saved there" in said

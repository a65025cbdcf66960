"""`thinwire generate` from outside."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import thinwire
from thinwire.cli.app import main


def written(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["generate", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_the_same_seed_gives_the_same_text(toy_run: Path, capsys) -> None:
    options = ["--prompt", "The cat", "--tokens", 60, "--temperature", 1.2, "--seed"]
    first = written(capsys, toy_run, *options, 3)
    assert first.startswith("The cat")
    assert first.endswith("\n")
    assert "<unk>" not in first
    assert written(capsys, toy_run, *options, 3) == first
    assert written(capsys, toy_run, *options, 4) != first
    model = thinwire.load(toy_run)
    assert first == model.generate("The cat", tokens=60, temperature=1.2, seed=3) + "\n"


def test_greedy_is_what_the_narrowest_choices_are(toy_run: Path, capsys) -> None:
    options = [toy_run, "--prompt", "The", "--tokens", 20]
    greedy = written(capsys, *options, "--temperature", 0)
    assert written(capsys, *options, "--top-k", 1, "--seed", 5) == greedy
    assert written(capsys, *options, "--top-p", 0.000001, "--seed", 6) == greedy


def test_without_a_prompt(toy_run: Path, capsys) -> None:
    assert written(capsys, toy_run, "--tokens", 0) == "\n"
    assert written(capsys, toy_run, "--tokens", 8).strip()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--temperature", "-1"], "the temperature is -1.0"),
        (["--top-k", "-2"], "top-k is -2"),
        (["--top-p", "1.5"], "top-p is 1.5"),
        (["--tokens", "-3"], "-3 tokens were asked for"),
        (["--step", "77"], "holds no step 77"),
    ],
)
def test_what_the_user_can_mend(toy_run: Path, arguments: list[str], sentence: str, capsys) -> None:
    assert main(["generate", str(toy_run), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sentence in " ".join(captured.err.split())


@pytest.mark.parametrize("end", ["reader leaves", "Ctrl+C"])
def test_it_streams_until_it_is_stopped(toy_run: Path, end: str) -> None:
    command = [sys.executable, "-m", "thinwire", "generate", str(toy_run), "--threads", "1"]
    with subprocess.Popen(
        [*command, "--tokens", str(10**9)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(200)
        if end == "Ctrl+C":
            process.send_signal(signal.SIGINT)
            process.stdout.read()
        else:
            process.stdout.close()
        error = process.stderr.read()
    assert process.wait(60) == (130 if end == "Ctrl+C" else 0)
    assert "Traceback" not in error

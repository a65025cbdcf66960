"""`thinwire score` from outside."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import thinwire
from thinwire.cli.app import main

Stdin = Callable[[bytes], None]
LINES = ["The cat sees the dog.", "", "An xyzzy follows the tree!"]


def same(found: list[dict], lines: list[str], run: Path) -> bool:
    """Whether these are the lines' scores, up to rounding and to the six decimals printed."""
    scores = [vars(score) for score in thinwire.load(run).score_lines(lines)]
    return found == [pytest.approx(score, rel=1e-5) for score in scores]


def test_one_line_out_for_each_line_in(toy_run: Path, tmp_path: Path, stdin: Stdin, capsys) -> None:
    content = "\n".join(LINES).encode()
    (tmp_path / "lines.txt").write_bytes(content)
    stdin(content)
    assert main(["score", str(toy_run)]) == 0
    shown = capsys.readouterr().out
    columns = [line.split("\t") for line in shown.splitlines()]
    found = [
        {"logprob": float(logprob), "num_tokens": int(tokens), "num_unknown": int(unknown)}
        for logprob, tokens, unknown in columns
    ]
    assert same(found, LINES, toy_run)
    assert main(["score", str(toy_run), str(tmp_path / "lines.txt")]) == 0
    assert capsys.readouterr().out == shown


def test_json(toy_run: Path, stdin: Stdin, capsys) -> None:
    stdin("\n".join(LINES).encode())
    assert main(["score", str(toy_run), "-", "--json"]) == 0
    captured = capsys.readouterr()
    assert same([json.loads(line) for line in captured.out.splitlines()], LINES, toy_run)
    assert captured.err == ""


def test_no_lines_at_all(toy_run: Path, stdin: Stdin, capsys) -> None:
    stdin(b"")
    assert main(["score", str(toy_run)]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"fine\n\0\n", "standard input is no text file: there is a NUL byte in line 2"),
        (b"caf\xe9\n", "standard input is not UTF-8: line 1 holds the byte 0xe9"),
    ],
)
def test_what_is_no_text(
    toy_run: Path, content: bytes, sentence: str, stdin: Stdin, capsys
) -> None:
    stdin(content)
    assert main(["score", str(toy_run)]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_a_file_that_is_not_there(toy_run: Path, capsys) -> None:
    assert main(["score", str(toy_run), "gone.txt"]) == 2
    assert "there is no file gone.txt" in " ".join(capsys.readouterr().err.split())


def test_who_asks_line_by_line_is_answered(toy_run: Path) -> None:
    """A rescorer that writes a line and waits for its score must not wait for ever."""
    command = [sys.executable, "-m", "thinwire", "score", str(toy_run), "--threads", "1"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        answers = []
        for line in LINES:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            answers.append(process.stdout.readline().split("\t"))
        process.stdin.close()
        assert process.stdout.read() == ""
    assert process.returncode == 0
    expected = [thinwire.load(toy_run).score(line) for line in LINES]
    assert [float(answer[0]) for answer in answers] == pytest.approx(
        [score.logprob for score in expected], rel=1e-5
    )


def test_a_file_that_is_taken_up(toy_run: Path, tmp_path: Path, capsys) -> None:
    text, out = tmp_path / "lines.txt", tmp_path / "scores"
    text.write_text("\n".join(LINES * 3) + "\n")
    command = ["score", str(toy_run), str(text), "--out", str(out)]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and "9 lines, " in captured.err
    assert "natural log-probability" in captured.err
    whole = out.read_text()
    out.write_text(whole[: len(whole) // 2])
    assert main(command) == 0
    assert f"9 lines ({whole[: len(whole) // 2].count(chr(10))} were" in capsys.readouterr().err
    assert out.read_text() == whole
    text.write_text("Other lines.\n" * 9)
    assert main(command) == 2
    assert "name another file, or remove it" in " ".join(capsys.readouterr().err.split())


def test_carried_scores_have_the_total_of_eval(toy_run: Path, tmp_path: Path, capsys) -> None:
    text = tmp_path / "lines.txt"
    text.write_text("\n".join(LINES * 300) + "\n")
    assert main(["eval", str(toy_run), "--text", str(text), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    command = ["score", str(toy_run), str(text), "--context", "text", "--json", "--base", "10"]
    assert main(command) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sum(row["num_tokens"] for row in rows) == measured["tokens_scored"]
    mean = -sum(row["log10prob"] for row in rows) / measured["tokens_scored"]
    assert 10**mean == pytest.approx(measured["ppl"], rel=1e-6)
    assert main([*command, "--out", str(tmp_path / "scores")]) == 0
    assert len((tmp_path / "scores").read_text().splitlines()) == len(rows)

"""`thinwire next` from outside."""

from __future__ import annotations

import json
from math import exp
from pathlib import Path

import pytest

import thinwire
from thinwire.cli.app import main


def test_a_line_for_each_word(toy_run: Path, capsys) -> None:
    assert main(["next", str(toy_run), "--prompt", "The cat sees", "--top", "4"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    expected = thinwire.load(toy_run).next("The cat sees", 4)
    assert [row[0] for row in rows] == [one.word for one in expected]
    assert [float(row[1]) for row in rows] == pytest.approx(
        [one.logprob for one in expected], abs=1e-5
    )
    assert [float(row[2]) for row in rows] == pytest.approx(
        [exp(one.logprob) for one in expected], abs=1e-5
    )


def test_json(toy_run: Path, capsys) -> None:
    assert main(["next", str(toy_run), "--json", "--words-only"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert captured.err == "" and found["prompt"] == ""
    assert found["candidates"] == [
        {"word": one.word, "id": one.id, "logprob": pytest.approx(one.logprob, rel=1e-5)}
        for one in thinwire.load(toy_run).next("", 10, words_only=True)
    ]


def test_many_prompts(toy_run: Path, stdin, capsys) -> None:
    prompts = ["The cat", "", "The dog sees"]
    stdin("\n".join(prompts).encode())
    assert main(["next", str(toy_run), "--prompts", "-", "--top", "2", "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["prompt"] for one in found] == prompts
    expected = thinwire.load(toy_run).next(prompts, 2)
    assert [[c["word"] for c in one["candidates"]] for one in found] == [
        [c.word for c in row] for row in expected
    ]
    stdin("\n".join(prompts).encode())
    assert main(["next", str(toy_run), "--prompts", "-", "--top", "2"]) == 0
    blocks = capsys.readouterr().out.removesuffix("\n\n").split("\n\n")
    assert [[line.split("\t")[0] for line in block.split("\n")] for block in blocks] == [
        [c.word for c in row] for row in expected
    ]


def test_one_kind_of_prompt(toy_run: Path, capsys) -> None:
    assert main(["next", str(toy_run), "--prompt", "The", "--prompts", "x.txt"]) == 2
    assert "leave out --prompt" in capsys.readouterr().err

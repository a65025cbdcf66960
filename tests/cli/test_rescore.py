"""`thinwire rescore` from outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import thinwire
from thinwire.cli.app import main

NBEST = """\
utt-1-1 The cats sees the dog .
utt-1-2 The cat sees the dog .
utt-1-3
utt-2-1 The bird the sees fish .
utt-2-2 The bird sees the fish .
"""
COSTS = "utt-1-1 1.0\nutt-1-2 1.1\nutt-1-3 90\nutt-2-1 2.0\nutt-2-2 2.2\n"
REFERENCE = "utt-1 The cat sees the dog .\nutt-2 The bird sees the fish .\n"


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nbest").write_text(NBEST)
    Path("costs").write_text(COSTS)
    Path("reference").write_text(REFERENCE)


def test_the_scores_of_words_as_kaldi_has_them(toy_run: Path, capsys) -> None:
    assert main(["rescore", str(toy_run), "nbest", "--out", "out"]) == 0
    assert capsys.readouterr().out == ""
    rows = [line.split(" ") for line in Path("out").read_text().splitlines()]
    model = thinwire.load(toy_run)
    for row, line in zip(rows, NBEST.splitlines(), strict=True):
        key, *words = line.split()
        assert row[0] == key and len(row) == 1 + len(words) + 1
        state, expected = model.start(), []
        for word in [*words, "</s>"]:
            state, logprob = model.step(state, word)
            expected.append(-logprob)
        assert [float(score) for score in row[1:]] == pytest.approx(expected, abs=1e-4)


def test_ranked_with_a_first_pass(toy_run: Path, capsys) -> None:
    command = ["rescore", str(toy_run), "nbest", "--scores", "costs", "--out", "out"]
    assert main([*command, "--tune", "reference", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["wer"] == {"first": 3 / 12, "rescored": 0.0, "oracle": 0.0}
    assert found["weight"] > 0
    best = Path("out").read_text().splitlines()
    assert best[0] == "utt-1-2 The cat sees the dog ." and best[3].startswith("utt-2-2 ")
    assert sorted(best) == NBEST.splitlines()
    again = ["--weight", str(found["weight"]), "--length-bonus", str(found["length_bonus"])]
    ranked = Path("out").read_text()
    assert main([*command, *again, "--reference", "reference"]) == 0
    assert "rescored 0.00%" in " ".join(capsys.readouterr().out.split())
    assert Path("out").read_text() == ranked
    # Without any weight the first pass decides.
    assert main([*command, "--weight", "0"]) == 0
    assert Path("out").read_text() == NBEST


def test_tsv_as_nemo_has_it(toy_run: Path, capsys) -> None:
    lists = ["The cats sees the dog .\t-1.0", "The cat sees the dog .\t-1.1"]
    lists += ["The bird the sees fish .\t-2", "The bird sees the fish .\t-2.2"]
    Path("beams").write_text("\n".join(lists) + "\n")
    command = ["rescore", str(toy_run), "beams", "--format", "tsv", "--out", "out"]
    scores = [thinwire.load(toy_run).score(line.split("\t")[0]).logprob for line in lists]
    expected = [
        float(line.split("\t")[1]) + 0.5 * score + 0.25 * len(line.split("\t")[0])
        for line, score in zip(lists, scores, strict=True)
    ]
    weights = ["--weight", "0.5", "--length-bonus", "0.25", "--length-unit", "characters"]
    assert main([*command, *weights]) == 0
    rows = [line.split("\t") for line in Path("out").read_text().splitlines()]
    assert [row[0] for row in rows] == [line.split("\t")[0] for line in lists]
    assert [float(row[1]) for row in rows] == pytest.approx(expected, abs=1e-3)
    Path("manifest").write_text(
        '{"text": "The cat sees the dog ."}\n{"text": "The bird sees the fish ."}\n'
    )
    assert main([*command, "--tune", "manifest", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["wer"]["rescored"] == 0.0
    rows = Path("out").read_text().splitlines()
    assert rows[0].startswith("The cat sees") and rows[2].startswith("The bird sees")


@pytest.mark.parametrize(
    ("arguments", "content", "sentence"),
    [
        ([], {"nbest": "utt The cat\n"}, "line 1 of nbest begins with 'utt', not with utt-id-N"),
        ([], {"nbest": "a-1 x\na-1 y\n"}, "nbest has a-1 twice"),
        ([], {"nbest": "\n"}, "there are no hypotheses in nbest"),
        (["--scores", "costs"], {"costs": "utt-1-1 1\n"}, "costs has no score of utt-1-2"),
        (["--scores", "costs"], {"costs": "utt-1-1 nan\n"}, "'nan', which is no number"),
        (["--scores", "costs"], {"costs": "utt-1-1\n"}, "is not a key and a score"),
        (["--tune", "reference"], {"reference": "utt-1 x\n"}, "no reference of utt-2"),
        (["--tune", "reference", "--weight", "1"], {}, "leave out the others, or --tune"),
        (["--tune", "reference", "--reference", "x"], {}, "leave out --reference"),
        (["--beam", "2"], {}, "--beam is for tsv"),
        (["--format", "tsv"], {}, "line 1 of nbest is not a text, a tab and a score"),
        (["--format", "tsv", "--scores", "costs"], {}, "leave out --scores"),
        (["--format", "tsv", "--beam", "2"], {"nbest": "a\t1\n"}, "which is no multiple of 2"),
        (
            ["--format", "tsv", "--tune", "reference"],
            {"nbest": "a\t1\nb\t1\nc\t2\n"},
            "3 hypotheses, which are not as many for each of 2 references",
        ),
    ],
)
def test_what_is_refused(toy_run: Path, arguments, content, sentence: str, capsys) -> None:
    for name, text in content.items():
        Path(name).write_text(text)
    assert main(["rescore", str(toy_run), "nbest", "--out", "out", *arguments]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not Path("out").exists()

"""An n-gram model from an ARPA file: its probabilities, its weight, and the three commands."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from thinwire.cli.app import main
from thinwire.data.corpus import Corpus
from thinwire.errors import UserError
from thinwire.inference import arpa as module
from thinwire.inference.arpa import Arpa, em_weight, interpolated, interpolation

pytest.importorskip("kenlm")
DISCOUNT = 0.5


class Bigrams:
    """A bigram model with absolute discounting, and its ARPA file."""

    def __init__(self, sentences: list[list[str]]) -> None:
        ones = Counter(word for words in sentences for word in [*words, "</s>"])
        ones["<unk>"] += 1
        total = sum(ones.values())
        self.one = {word: count / total for word, count in ones.items()}
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for words in sentences:
            for before, word in pairwise(["<s>", *words, "</s>"]):
                counts[before][word] += 1
        self.two = {
            before: {word: (n - DISCOUNT) / after.total() for word, n in after.items()}
            for before, after in counts.items()
        }
        self.backoff = {
            before: (1 - sum(after.values())) / (1 - sum(self.one[word] for word in after))
            for before, after in self.two.items()
        }

    def probability(self, before: str, word: str) -> float:
        seen = self.two.get(before, {})
        return seen[word] if word in seen else self.backoff.get(before, 1.0) * self.one[word]

    def write(self, file: Path) -> Path:
        words = {"<s>": 1e-9, **self.one}
        ones = [
            f"{math.log10(p)}\t{word}\t{math.log10(self.backoff.get(word, 1.0))}"
            for word, p in words.items()
        ]
        twos = [
            f"{math.log10(p)}\t{before} {word}"
            for before, after in self.two.items()
            for word, p in after.items()
        ]
        head = f"\\data\\\nngram 1={len(ones)}\nngram 2={len(twos)}\n\n"
        parts = [head, "\\1-grams:\n", *(f"{one}\n" for one in ones), "\n\\2-grams:\n"]
        parts += [*(f"{two}\n" for two in twos), "\n\\end\\\n"]
        file.write_text("".join(parts), encoding="utf-8")
        return file


@pytest.fixture(scope="module")
def bigrams(toy_data: Path) -> Bigrams:
    """Of the toy text's training split, as its tokenizer reads it."""
    corpus = Corpus.open(toy_data)
    return Bigrams(lines(toy_data, corpus.ids("train").tolist()))


def lines(toy_data: Path, ids: list[int]) -> list[list[str]]:
    from thinwire.data.tokenizers import Tokenizer

    tokenizer, found = Tokenizer.load(toy_data / "tokenizer.json"), [[]]
    for id in ids:
        if id == tokenizer.eos_id:
            found.append([])
        else:
            found[-1].append(tokenizer.token(id))
    return found[:-1]


@pytest.fixture(scope="module")
def file(bigrams: Bigrams, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bigrams.write(tmp_path_factory.mktemp("arpa") / "toy.arpa")


def test_probabilities_are_those_of_the_file(
    trained, toy_data: Path, bigrams: Bigrams, file: Path
) -> None:
    model = trained()
    ids_N = Corpus.open(toy_data).ids("valid")[:300]
    found = Arpa(file, model.tokenizer).logprobs(ids_N)
    expected, before = [], "<s>"
    for id in ids_N.tolist():
        word = model.tokenizer.token(id)
        expected.append(math.log(bigrams.probability(before, word)))
        before = "<s>" if word == "</s>" else word
    assert found == pytest.approx(expected, abs=1e-5)


def test_what_the_file_lacks_shares_its_unknown_word(
    trained, toy_data: Path, bigrams: Bigrams, tmp_path: Path
) -> None:
    """So that the probabilities of all tokens add up to one, after any token."""
    model = trained()
    sentences = lines(toy_data, Corpus.open(toy_data).ids("train").tolist())
    few = Bigrams([[word for word in words if word != "cat"] for words in sentences[:40]])
    arpa = Arpa(few.write(tmp_path / "few.arpa"), model.tokenizer)
    V = model.tokenizer.vocab_size
    lacked = sum(model.tokenizer.token(id) not in few.one for id in range(V))
    assert lacked > 3
    for before in model.tokenizer.encode("The cat sees"):
        rows = np.array([arpa.logprobs(np.array([before, id]))[1] for id in range(V)])
        assert np.exp(rows).sum() == pytest.approx(1.0, abs=1e-5)


def test_a_mixture_at_both_ends_and_between() -> None:
    own, ngram = np.log([0.5, 0.2, 0.9]), np.log([0.1, 0.6, 0.9])
    assert interpolated(own, ngram, 0.0) == pytest.approx(own)
    assert interpolated(own, ngram, 1.0) == pytest.approx(ngram)
    assert np.exp(interpolated(own, ngram, 0.25)) == pytest.approx([0.4, 0.3, 0.9])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_weight_is_the_most_probable_one(share: float) -> None:
    generator = np.random.default_rng(0)
    own, ngram = np.log(generator.uniform(0.01, 1.0, (2, 400)))
    own[generator.uniform(size=400) < share] -= 3.0
    found = em_weight(own, ngram)
    grid = np.linspace(0.0, 1.0, 1001)
    best = grid[np.argmax([interpolated(own, ngram, weight).sum() for weight in grid])]
    assert found == pytest.approx(best, abs=2e-3)


@pytest.mark.parametrize("settings", [{}, {"context": "line"}, {"kind": "transformer"}], ids=str)
def test_eval(trained, settings: dict, toy_data: Path, file: Path, capsys) -> None:
    model = trained(**settings)
    run = str(model.run.path)
    assert main(["eval", run, "--split", "test", "--arpa", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["arpa_weight"] < 1
    assert found["interpolated_ppl"] <= 1.01 * min(found["ppl"], found["ngram_ppl"])
    # A given weight at its ends is either model alone.
    for weight, name in ((0, "ppl"), (1, "ngram_ppl")):
        command = ["eval", run, "--split", "test", "--arpa", str(file), "--json"]
        assert main([*command, "--arpa-weight", str(weight)]) == 0
        again = json.loads(capsys.readouterr().out)
        assert again["interpolated_ppl"] == pytest.approx(found[name], rel=1e-5)
        assert again["ngram_ppl"] == found["ngram_ppl"]
    assert main(["eval", run, "--arpa", str(file), "--arpa-weight", "0.25"]) == 0
    assert "--arpa-weight" in (shown := capsys.readouterr().out) and "0.2500" in shown


def test_score(trained, file: Path, tmp_path: Path, capsys) -> None:
    model = trained()
    run, text = str(model.run.path), tmp_path / "text"
    text.write_text("The cat sees the dog.\n\nThe xyzzy hears a tree.\n")
    flags = ["--arpa", str(file), "--arpa-weight", "0.3"]
    assert main(["score", run, str(text), "--tokens", "--json", *flags]) == 0
    rows = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    arpa = Arpa(file, model.tokenizer)
    for row, line in zip(rows, text.read_text().splitlines(), strict=True):
        ids, state, own = [*model.tokenizer.encode(line), model.tokenizer.eos_id], model.start(), []
        for id in ids:
            state, logp = model.step(state, id)
            own.append(logp)
        expected = interpolated(np.array(own), arpa.logprobs(np.array(ids)), 0.3)
        assert row["logprobs"] == pytest.approx(expected, abs=1e-4)
        assert row["logprob"] == pytest.approx(expected.sum(), abs=1e-4)
    # A file that was begun is taken up with the same weight, and refused with another.
    out = tmp_path / "scores"
    assert main(["score", run, str(text), "--out", str(out), *flags]) == 0
    whole = out.read_text()
    out.write_text("".join(whole.splitlines(keepends=True)[:2]))
    assert main(["score", run, str(text), "--out", str(out), *flags]) == 0
    rows = [[float(row.split("\t")[0]) for row in t.splitlines()] for t in (out.read_text(), whole)]
    assert rows[0] == pytest.approx(rows[1], abs=1e-4)
    assert main(["score", run, str(text), "--out", str(out), *flags[:-1], "0.9"]) == 2
    assert main(["score", run, str(text), "--context", "text", *flags]) == 0
    # Without a weight the validation text decides, and the weight is said.
    capsys.readouterr()
    assert main(["score", run, str(text), *flags[:2]]) == 0
    said = capsys.readouterr().err
    expected = interpolation(model, file, None, "line").weight
    assert f"--arpa-weight {expected:.6g}" in said


def test_rescore(trained, file: Path, tmp_path: Path, capsys) -> None:
    model = trained()
    nbest, out = tmp_path / "nbest", tmp_path / "out"
    nbest.write_text("u-1 The cats sees the dog .\nu-2 The cat sees the dog .\n")
    flags = ["--arpa", str(file), "--arpa-weight", "0.4"]
    command = ["rescore", str(model.run.path), str(nbest), "--out", str(out)]
    assert main([*command, *flags]) == 0
    text = tmp_path / "text"
    text.write_text("The cats sees the dog .\nThe cat sees the dog .\n")
    assert main(["score", str(model.run.path), str(text), *flags]) == 0
    totals = [float(row.split("\t")[0]) for row in capsys.readouterr().out.splitlines()]
    for row, total in zip(out.read_text().splitlines(), totals, strict=True):
        assert -sum(map(float, row.split()[1:])) == pytest.approx(total, abs=1e-4)
    assert main([*command, "--arpa", str(file)]) == 0
    assert "--arpa-weight 0." in capsys.readouterr().err


def test_a_path_that_is_not_utf8(trained, file: Path, tmp_path: Path, capsys) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.arpa"))
    shutil.copyfile(file, odd)
    command = ["eval", str(trained().run.path), "--arpa-weight", "0.3", "--json", "--arpa"]
    assert main([*command, str(odd)]) == 0
    found = capsys.readouterr().out
    assert main([*command, str(file)]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(found)
    odd.write_bytes(b"nothing")
    assert main([*command, str(odd)]) == 2


@pytest.mark.parametrize("verb", ["eval", "score", "rescore"])
@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--arpa-weight", "0.5"], "name its file with --arpa"),
        (["--arpa", "FILE", "--arpa-weight", "1.5"], "--arpa-weight is 1.5, and must be from 0"),
        (["--arpa", "FILE", "--arpa-weight", "nan"], "--arpa-weight is nan"),
        (["--arpa", "none.arpa"], "there is no file none.arpa"),
        (["--arpa", "TEXT"], "is no ARPA file that KenLM reads: "),
        (["--arpa", "BYTES"], "is no ARPA file that KenLM reads: it is not UTF-8"),
    ],
)
def test_refused(
    verb: str, flags: list[str], sentence: str, trained, file: Path, tmp_path: Path, capsys
) -> None:
    text = tmp_path / "text"
    text.write_text("u-1 The cat\n")
    spoilt = tmp_path / "spoilt"
    spoilt.write_bytes(file.read_bytes().replace(b"ngram 1=", b"ngram \xff 1=", 1))
    given = {"FILE": str(file), "TEXT": str(text), "BYTES": str(spoilt)}
    needed = {"eval": [], "score": [str(text)], "rescore": [str(text), "--out", "out"]}[verb]
    run = str(trained().run.path)
    capsys.readouterr()  # of the training
    assert main([verb, run, *needed, *(given.get(flag, flag) for flag in flags)]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_without_the_package(trained, file: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "kenlm", None)
    assert main(["eval", str(trained().run.path), "--arpa", str(file)]) == 2
    assert "--arpa needs the package kenlm: pip install kenlm" in capsys.readouterr().err


def test_without_validation_text(
    trained, file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, toy_data: Path
) -> None:
    from dataclasses import replace

    model = trained()
    moved = replace(model, run=replace(model.run, data=tmp_path / "gone"))
    with pytest.raises(UserError, match="gone is not there any more: give --arpa-weight"):
        interpolation(moved, file, None, "line")
    assert interpolation(moved, file, 0.5, "line").weight == 0.5
    found = interpolation(moved, file, None, "line", toy_data).weight
    assert found == interpolation(model, file, None, "line").weight
    monkeypatch.setattr(module, "HELD_OUT_TOKENS", 100)
    assert interpolation(model, file, None, "text").weight != found

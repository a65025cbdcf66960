"""By how much does rescoring lower the word error rate of a synthetic n-best task?

Lines of the King James Bible that no training text holds are "recognised": every word competes with
words of the vocabulary that are one letter away. Each has a made-up acoustic score, normal with
deviation 1, whose mean is GAP higher for the right word. The 100 likeliest hypotheses of a line are
its list. Weight and length bonus are tuned on lists of other lines.

    python -m benchmarks.questions.rescoring [--quick]
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.corpora import fetched, prepared
from benchmarks.lab.child import thinwire
from benchmarks.record.write import table, write
from thinwire.data.corpus import Corpus
from thinwire.data.tokenizers import Tokenizer

HYPOTHESES, CONFUSIONS, GAP, SEED = 100, 4, 1.5, 1
LENGTHS = range(5, 30)
LINES = {"dev": 100, "test": 200}
TOKENS = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the training")
    quick = parser.parse_args().quick
    data = prepared("kjv-rescoring", fetched("kjv"), "--valid", "0.02", "--test", "0.02")
    tokens = TOKENS // 10 if quick else TOKENS
    with TemporaryDirectory() as folder:
        out = Path(folder)
        thinwire(
            *("train", data, "--out", out / "run", "--tokens", tokens, "--seed", SEED),
            *("--model.width", 128, "--threads", 2),
        )
        write_lists(data, out)
        found: dict[str, Any] = {}
        for lists, *flags in (
            ("dev", "--tune", out / "dev.ref"),
            ("test", "--reference", out / "test.ref"),
        ):
            if lists == "test":
                tuned = found["dev"]
                flags += ["--weight", tuned["weight"], "--length-bonus", tuned["length_bonus"]]
            command = ("rescore", out / "run", out / f"{lists}.nbest", "--out", out / lists)
            shown = thinwire(*command, "--scores", out / f"{lists}.cost", *flags, "--json")
            found[lists] = json.loads(shown)
    rows = [
        {
            "lists": lists,
            "words": one["words"],
            "first hypotheses": f"{one['wer']['first']:.1%}",
            "rescored": f"{one['wer']['rescored']:.1%}",
            "oracle": f"{one['wer']['oracle']:.1%}",
            "fewer errors": f"{1 - one['wer']['rescored'] / one['wer']['first']:.0%}",
        }
        for lists, one in found.items()
    ]
    body = (
        f"Word error rates; {HYPOTHESES} hypotheses per line, LSTM of width 128 after {tokens:,} "
        f"tokens of the King James Bible; weight {found['dev']['weight']:.3g} and length bonus "
        f"{found['dev']['length_bonus']:.3g} tuned on dev.\n\n{table(rows)}"
    )
    write("rescoring", "Rescoring", body, found | {"tokens": tokens, "seed": SEED, "quick": quick})


def write_lists(data: Path, out: Path) -> None:
    """Hypotheses, costs and references of both sets of lines, in Kaldi's form."""
    corpus, tokenizer = Corpus.open(data), Tokenizer.load(data / "tokenizer.json")
    words = [tokenizer.token(id) for id in range(tokenizer.vocab_size)]
    near = neighbours(words, corpus.meta.eos_id, corpus.meta.unk_id)
    rng = np.random.default_rng(SEED)
    for lists, split in (("dev", "valid"), ("test", "test")):
        ids = np.asarray(corpus.ids(split))
        lines = np.split(ids, np.flatnonzero(ids == corpus.meta.eos_id) + 1)
        usable = [
            line[:-1].tolist()
            for line in lines
            if len(line) - 1 in LENGTHS and corpus.meta.unk_id not in line
        ][: LINES[lists]]
        nbest, cost, reference = [], [], []
        for number, line in enumerate(usable):
            utterance = f"kjv-{lists}-{number:04}"
            reference.append(" ".join([utterance, *(words[id] for id in line)]))
            for order, (score, hypothesis) in enumerate(recognised(line, near, rng), 1):
                nbest.append(f"{utterance}-{order} {' '.join(words[id] for id in hypothesis)}")
                cost.append(f"{utterance}-{order} {-score:.6f}")
        for name, rows in (("nbest", nbest), ("cost", cost), ("ref", reference)):
            (out / f"{lists}.{name}").write_text("\n".join(rows) + "\n", encoding="utf-8")


def neighbours(words: list[str], *without: int | None) -> dict[int, list[int]]:
    """Of each word the most frequent words that one changed, added or left out letter makes."""
    by_rest: dict[str | tuple[str, int], list[int]] = defaultdict(list)
    for id, word in enumerate(words):
        if id not in without and word.isalpha():
            for key in {(word, 0), *((word[:i] + word[i + 1 :], 0) for i in range(len(word)))}:
                by_rest[key].append(id)
            for i in range(len(word)):
                by_rest[word[:i] + "\0" + word[i + 1 :]].append(id)
    near: dict[int, set[int]] = defaultdict(set)
    for rest, ids in by_rest.items():
        for id in ids:
            others = set(ids) - {id}
            if isinstance(rest, tuple):  # equal to the word itself, or one letter shorter
                others = {o for o in others if abs(len(words[o]) - len(words[id])) == 1}
            near[id] |= others
    return {id: sorted(others)[:CONFUSIONS] for id, others in near.items()}


def recognised(
    line: list[int], near: dict[int, list[int]], rng: np.random.Generator
) -> list[tuple[float, list[int]]]:
    """The likeliest hypotheses with their scores, the likeliest first."""
    best: list[tuple[float, list[int]]] = [(0.0, [])]
    for id in line:
        choices = [id, *near.get(id, [])]
        scores = rng.normal(size=len(choices)) + np.where(np.arange(len(choices)) == 0, GAP, 0.0)
        longer = [
            (total + float(score), [*before, choice])
            for total, before in best
            for choice, score in zip(choices, scores, strict=True)
        ]
        best = sorted(longer, key=lambda one: -one[0])[:HYPOTHESES]
    return best


if __name__ == "__main__":
    main()

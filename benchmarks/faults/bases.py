"""What is good, to be spoilt: texts, data folders, runs, adaptation layers, n-best lists."""

from __future__ import annotations

import gzip
import lzma
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zstandard

from thinwire.adapt.adapt import adapt
from thinwire.adapt.options import AdaptOptions
from thinwire.config import RunConfig
from thinwire.data.prepare import prepare
from thinwire.training.loop import train

TOKENIZERS = ("word", "bpe", "bytes")
WORDS = ("the", "cat", "sees", "a", "dog", "and", "hears", "birds", "in", "trees", "naïve", ".")
SETTINGS = {
    "run": {"tokens": 900, "threads": 1},
    "model": {"width": 8, "layers": 1},
    "loss": {"samples": 8},
    "data": {"batch": 2, "length": 5},
    "metrics": {"every_steps": 5},
    "eval": {"every_tokens": 300},
    "checkpoint": {"every_tokens": 300},
}


def make_bases(folder: Path) -> None:
    """All of them, in a new folder, which anybody may read."""
    folder.mkdir()
    rng = random.Random(0)
    lines = [" ".join(rng.choices(WORDS, k=rng.randrange(3, 12))) for _ in range(400)]
    text = folder / "text.txt"
    text.write_text("\n".join(lines) + "\n", encoding="utf-8")
    short = folder / "short.txt"
    short.write_text("\n".join(lines[:40]) + "\n", encoding="utf-8")
    (folder / "text.gz").write_bytes(gzip.compress(text.read_bytes()))
    (folder / "text.xz").write_bytes(lzma.compress(text.read_bytes()))
    (folder / "text.zst").write_bytes(zstandard.compress(text.read_bytes()))
    (folder / "vocab.txt").write_text("</s>\n<unk>\n" + "\n".join(WORDS) + "\n", encoding="utf-8")
    (folder / "words.arpa").write_text(unigrams(), encoding="utf-8")
    write_lists(folder, lines[:12])
    for kind in TOKENIZERS:
        size: dict[str, Any] = {"vocab_size": 280} if kind == "bpe" else {}
        data = folder / f"data-{kind}"
        prepare([str(text)], out=data, tokenizer=kind, valid=0.1, test=0.1, num_processes=1, **size)
        train(data, folder / f"run-{kind}", RunConfig.from_dict(SETTINGS))
    layers = AdaptOptions(method="layers", tokens=60, threads=1, batch=1)
    adapt(folder / "run-word", [str(short)], folder / "run-word-layers", layers)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def unigrams() -> str:
    """A model of single words in ARPA format."""
    names = ("<unk>", "<s>", "</s>", *WORDS)
    lines = [f"{-99 if name == '<s>' else -1.2}\t{name}" for name in names]
    return "\n".join(
        ["\\data\\", f"ngram 1={len(names)}", "", "\\1-grams:", *lines, "", "\\end\\", ""]
    )


def write_lists(folder: Path, said: Sequence[str]) -> None:
    """Of each line three hypotheses, with their costs, in Kaldi's form."""
    lists, costs, references = [], [], []
    for number, line in enumerate(said):
        for order in range(3):
            words = line.split()[order:] or ["the"]
            lists.append(f"utt{number}-{order + 1} {' '.join(words)}")
            costs.append(f"utt{number}-{order + 1} {10 + order}.5")
        references.append(f"utt{number} {line}")
    for name, rows in (("lists", lists), ("costs", costs), ("said", references)):
        (folder / name).write_text("\n".join(rows) + "\n", encoding="utf-8")

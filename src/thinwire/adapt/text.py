"""New text as lines: lines to train on, and held-out lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from thinwire.data.corpus import Corpus, narrowest_dtype
from thinwire.data.sources import find_sources
from thinwire.data.splits import TRAIN, VALID, Division
from thinwire.data.tokenizer_json import UNK
from thinwire.data.tokenizers import Tokenizer, WordTokenizer, find_words
from thinwire.errors import UserError
from thinwire.inference.text import read_lines
from thinwire.runs.evaluation import Ids

VALID_FRACTION = 0.1  # new text is short: 1%, as in training from scratch, would be a page


@dataclass(frozen=True)
class Text:
    """Lines to train on, and held-out lines."""

    train: list[str]
    valid: list[str]

    @classmethod
    def read(cls, texts: Sequence[str], valid: str | float | None) -> Text:
        """Read text files.

        Args:
            texts: files, folders, globs or `-`.
            valid: held-out text (a file, folder or glob), or the fraction of the lines to hold
                out; None: a tenth.

        Raises:
            UserError: there is no text, no words in it, or too few lines to hold one out.
        """
        lines = _lines(texts)
        if isinstance(valid, str) and (Path(valid).exists() or not _is_number(valid)):
            return cls(lines, _lines([valid]))
        fraction = VALID_FRACTION if valid is None else float(valid)
        if not 0 < fraction < 1:
            raise UserError(
                f"--valid is {valid}, but as a fraction it must lie between 0 and 1: what is held "
                "out says when to stop"
            )
        if len(lines) < 2:
            raise UserError(
                f"{texts[0]} has a single line, so none can be held out: name held-out text with "
                "--valid FILE"
            )
        split_L = Division.by_fraction(len(lines), valid=fraction).split_of(np.arange(len(lines)))
        return cls(
            [lines[line] for line in np.flatnonzero(split_L == TRAIN)],
            [lines[line] for line in np.flatnonzero(split_L == VALID)],
        )

    def unknown_words(self, tokenizer: WordTokenizer) -> Counter[str]:
        """The words of the training lines that are not in the vocabulary, and their counts."""
        known = {*tokenizer.words, UNK}
        counts: Counter[str] = Counter()
        for line in self.train:
            counts.update(word for word in find_words(tokenizer.kind, line) if word not in known)
        return counts


def encode(tokenizer: Tokenizer, lines: Iterable[str]) -> Ids:
    """The ids of some lines, ends of lines included, in the narrowest type."""
    dtype = narrowest_dtype(tokenizer.vocab_size)
    return np.concatenate(tokenizer.encode_lines(lines)).astype(dtype)


def is_data_folder(name: str | Path) -> bool:
    """Whether this is a data folder rather than text."""
    return (Path(name) / "meta.json").is_file()


def open_data(name: str | Path, tokenizer_digest: str) -> Corpus:
    """A data folder of old text.

    Raises:
        UserError: it was prepared with another tokenizer.
    """
    corpus = Corpus.open(name)
    if corpus.meta.tokenizer_blake2b != tokenizer_digest:
        raise UserError(
            f"{name} was prepared with another tokenizer than the model's, so its ids mean other "
            "words: give the text itself with --mix"
        )
    return corpus


def _lines(texts: Sequence[str]) -> list[str]:
    lines = [line for block in read_lines(find_sources(texts)) for line in block]
    if not any(line.strip() for line in lines):
        others = f" and the {len(texts) - 1} after it" if len(texts) > 1 else ""
        raise UserError(f"there is no text in {texts[0]}{others}")
    return lines


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

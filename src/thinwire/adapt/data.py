"""The data folder of an adaptation: train has the mixture, valid new text, and test old text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from thinwire.data.corpus import (
    META_FILE,
    SPLITS,
    TOKENIZER_FILE,
    Corpus,
    Meta,
    SplitMeta,
    file_digest,
    narrowest_dtype,
)
from thinwire.data.tokenizers import Tokenizer, WordTokenizer
from thinwire.runs.evaluation import Ids


@dataclass(frozen=True)
class Split:
    """The ids of a split, and the size of the raw text that they come from.

    Attributes:
        ids: the token ids, ends of lines included.
        words: number of words between white space; 0: not known, as for a mixture.
        characters: number of characters of the raw text, line ends included; 0: not known.
    """

    ids: Ids
    words: int = 0
    characters: int = 0

    @classmethod
    def of_lines(cls, ids: Ids, lines: Iterable[str]) -> Split:
        """The split of lines that have these ids."""
        counted = [(len(line.split()), len(line) + 1) for line in lines]
        words, characters = map(sum, zip(*counted, strict=True))
        return cls(ids, words, characters)

    @classmethod
    def of_corpus(cls, corpus: Corpus, split: str) -> Split:
        """The split of a data folder."""
        about = corpus.meta.splits[split]
        return cls(corpus.ids(split), about.words, about.characters)


NOTHING = Split(np.empty(0, np.uint8))


def write_data(
    folder: Path,
    tokenizer_json: str,
    tokenizer: Tokenizer,
    splits: Mapping[str, Split],
    counts: Sequence[int] | None = None,
) -> None:
    """Write a data folder.

    Args:
        folder: the folder to create.
        tokenizer_json: the content of `tokenizer.json`.
        tokenizer: the same tokenizer, loaded.
        splits: the splits by name; a missing split is empty.
        counts: how often each token occurs, `[V]`; None: as often as in the training split.
    """
    folder.mkdir()
    file = folder / TOKENIZER_FILE
    file.write_text(tokenizer_json, encoding="utf-8")
    dtype = narrowest_dtype(tokenizer.vocab_size)
    about = {}
    for name in SPLITS:
        split = splits.get(name, NOTHING)
        split.ids.astype(dtype).tofile(folder / f"{name}.bin")
        unknown = 0
        if tokenizer.unk_id is not None:
            unknown = int(np.count_nonzero(split.ids == tokenizer.unk_id))
        about[name] = SplitMeta(
            tokens=len(split.ids),
            unknown=unknown,
            words=split.words,
            characters=split.characters,
            lines=int(np.count_nonzero(split.ids == tokenizer.eos_id)),
            blake2b=file_digest(folder / f"{name}.bin"),
        )
    Meta(
        tokenizer=tokenizer.kind if isinstance(tokenizer, WordTokenizer) else "file",
        tokenizer_blake2b=file_digest(file),
        vocab_size=tokenizer.vocab_size,
        dtype=dtype.name,
        unk_id=tokenizer.unk_id,
        eos_id=tokenizer.eos_id,
        counts=np.bincount(splits["train"].ids, minlength=tokenizer.vocab_size).tolist()
        if counts is None
        else list(counts),
        splits=about,
    ).write(folder / META_FILE)

"""`thinwire prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from thinwire.data.corpus import Corpus


def prepare(
    text: Annotated[list[str], Parameter(allow_leading_hyphen=True)],
    /,
    *,
    out: Path,
    tokenizer: str = "word",
    vocab_size: int | None = None,
    min_count: int | None = None,
    vocab: Path | None = None,
    valid: str | None = None,
    test: str | None = None,
    force: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Turn text into a data folder of token ids.

    Works in memory that does not grow with the text, on all cores; beside the folder it needs
    four bytes a token of disk while it runs. Every line ends in the token `</s>`.

    Parameters
    ----------
    text
        UTF-8 text: files, folders (every file below them), globs in quotes, - for standard input;
        .gz, .xz and .zst are unpacked.
    out
        The data folder to create.
    tokenizer
        word (words, numbers and single marks), space (what white space separates, for text that is
        tokenised already), bpe (byte-level BPE, learnt from the text), bytes, or a tokenizer.json.
    vocab_size
        Most ids in all, `<unk>` and `</s>` included: the commonest words, or the size of the BPE
        vocabulary (default there: 16384).
    min_count
        Words that occur less often in the training text are `<unk>` (default: 2, or 1 with
        --vocab-size). At most 1048576 ids, unless --vocab-size says otherwise.
    vocab
        A list of words, one a line: these get ids, and no others.
    valid
        Text for validation (file, folder or glob), or the fraction of the lines of TEXT to hold
        out, in runs that are spread evenly; 0 for none. Default: 0.01, or none where --test names
        a file.
    test
        The same for the final test.
    force
        Replace the data folder, if there is one.
    """
    from thinwire.data.prepare import prepare as prepare_text

    _show(
        prepare_text(
            text,
            out=out,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            min_count=min_count,
            vocab=vocab,
            valid=valid,
            test=test,
            force=force,
        )
    )


def _show(corpus: Corpus) -> None:
    """A table of the splits, on standard error."""
    from rich.table import Table

    from thinwire.console import console

    meta = corpus.meta
    title = f"{meta.tokenizer} tokens, vocabulary {meta.vocab_size:,}"
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("split")
    for column in ("tokens", "lines", "words", "characters", "unknown"):
        table.add_column(column, justify="right")
    for name, split in meta.splits.items():
        numbers = (split.tokens, split.lines, split.words, split.characters)
        unknown = f"{split.unknown / split.tokens:.2%}" if split.tokens else "-"
        table.add_row(name, *(f"{number:,}" for number in numbers), unknown)
    console.print(table)

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
    out: Annotated[Path, Parameter(metavar="DATA")],
    tokenizer: Annotated[str, Parameter(metavar="NAME|FILE")] = "word",
    vocab_size: int | None = None,
    min_count: int | None = None,
    vocab: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    valid: Annotated[str | None, Parameter(metavar="FILE|FRACTION")] = None,
    test: Annotated[str | None, Parameter(metavar="FILE|FRACTION")] = None,
    force: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Turn text into a data folder of token ids.

    Memory does not grow with the text, and all cores are used. While it runs it needs 4 bytes of
    disk per token beside the folder. Every line ends with the token `</s>`.

    Parameters
    ----------
    text
        UTF-8 text: files, folders (every file below them), globs in quotes, or - for standard
        input. Files that end in .gz, .xz or .zst are unpacked.
    out
        The data folder to create.
    tokenizer
        word (words, numbers and single marks), space (what white space separates, for text that is
        already tokenised), bpe (byte-level BPE, learnt from the text), bytes, or a file, whose ids
        are kept: a tokenizer.json, a SentencePiece .model, or a table of symbols and ids such as
        the tokens.txt of k2 and the words.txt of Kaldi.
    vocab_size
        Largest number of ids, `<unk>` and `</s>` included. word and space keep the most frequent
        words; bpe learns a vocabulary of this size (default: 16384).
    min_count
        Words that occur less often than this in the training text become `<unk>`. Default: 2, or 1
        with --vocab-size. Without --vocab-size there are at most 1048576 ids.
    vocab
        A file with one word per line: these words get ids, and no others.
    valid
        Text for validation (file, folder or glob), or the fraction of the lines of TEXT to hold
        out, in evenly spread runs of lines; 0: none. Default: 0.01, or none if --test names a file.
    test
        Text or fraction for the final test, in the same form as --valid.
    force
        Replace the data folder if it exists.

    Examples
    --------
    thinwire prepare book.txt --out data
    thinwire prepare 'corpus/*.gz' --out data --vocab-size 100000 --valid 0.02
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

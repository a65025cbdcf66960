"""Symbol tables as Kaldi, k2 and OpenFst read them: a symbol and its id on each line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from thinwire.data.tokenizers import Tokenizer
from thinwire.errors import UserError
from thinwire.inference.trained_model import TrainedModel


def write_words(trained: TrainedModel, folder: Path) -> None:
    """Write `words.txt` (word and id) and `counts.txt` (word and its count in the training text).

    Raises:
        UserError: a word contains white space.
    """
    write_symbols(trained.tokenizer, folder / "words.txt")
    counts = trained.run.counts_V().tolist()
    lines = (f"{symbol} {counts[id]}\n" for symbol, id in _symbols(trained.tokenizer))
    (folder / "counts.txt").write_text("".join(lines), encoding="utf-8", newline="\n")


def write_symbols(tokenizer: Tokenizer, path: Path) -> None:
    """Write every token and its id.

    Raises:
        UserError: a token contains white space.
    """
    lines = (f"{symbol} {id}\n" for symbol, id in _symbols(tokenizer))
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def _symbols(tokenizer: Tokenizer) -> Iterator[tuple[str, int]]:
    """The tokens in the order of their ids; numbers without a token are left out."""
    for id in range(tokenizer.vocab_size):
        token = tokenizer.token(id)
        if not token:
            continue
        if token.split() != [token]:
            raise UserError(
                f"token {id} is {token!r}, and a symbol table cannot hold white space in a symbol"
            )
        yield token, id

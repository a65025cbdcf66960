"""Symbol tables of Kaldi and k2 (`words.txt`, `tokens.txt`) as tokenizers with the same ids.

A line holds a symbol and its id. Text is separated by white space into symbols; what is no symbol
is the unknown one. Symbols that stand for no text (blank, start and end, disambiguation) cannot be
spelt by a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import regex

from thinwire.errors import UserError

KEY = "symbols"
UNKNOWN = ("<unk>", "<UNK>", "[UNK]", "<oov>", "<OOV>", "<SPOKEN_NOISE>", "<spoken_noise>")
NO_TEXT = regex.compile(
    r"<(?:eps|epsilon|blk|blank|pad|s|/s|sos|eos|sos/eos)>|\[(?:PAD|BLANK)\]|#\d+", regex.IGNORECASE
)
PATTERN = r"\S+"


def read_symbols(path: Path) -> dict[str, Any]:
    """The content of the `tokenizer.json` of a symbol table.

    Raises:
        UserError: a line is not a symbol and its id, one of them stands there twice, or there is no
            symbol for unknown text.
    """
    try:
        lines = path.read_bytes().decode("utf-8").splitlines()
    except OSError as error:
        raise UserError(f"the tokenizer {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise UserError(
            f"{path} is none of a tokenizer.json, a SentencePiece model (its name ends in .model) "
            "and a table of symbols and ids, which are UTF-8"
        ) from None
    vocab: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        symbol, id = _entry(line, f"line {number} of {path}")
        if symbol in vocab:
            raise UserError(f"line {number} of {path} holds {symbol!r} again")
        vocab[symbol] = id
    if len(set(vocab.values())) < len(vocab):
        raise UserError(f"{path} gives several symbols the same id")
    unknown = next((symbol for symbol in UNKNOWN if symbol in vocab), None)
    if unknown is None:
        raise UserError(f"{path} has no symbol for unknown text: add one of {', '.join(UNKNOWN)}")
    no_text = sorted(id for symbol, id in vocab.items() if NO_TEXT.fullmatch(symbol))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": PATTERN},
            "behavior": "Removed",
            "invert": True,
        },
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": vocab,
            "unk_token": unknown,
            KEY: {"no_text": no_text},
        },
    }


def _entry(line: str, where: str) -> tuple[str, int]:
    fields = line.split()
    if len(fields) != 2 or not (fields[1].isascii() and fields[1].isdecimal()):
        raise UserError(f"{where} is {line[:60]!r}, and should be a symbol and its id")
    return fields[0], int(fields[1])


class SymbolEncoder:
    """Encodes text to ids with a table from `read_symbols`."""

    def __init__(self, content: dict[str, Any]) -> None:
        model = content["model"]
        no_text = set(model[KEY]["no_text"])
        self._ids = {symbol: id for symbol, id in model["vocab"].items() if id not in no_text}
        self._unk_id = model["vocab"][model["unk_token"]]
        self._find = regex.compile(PATTERN).findall

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """The ids of each line."""
        get, unk_id = self._ids.get, self._unk_id
        return [[get(symbol, unk_id) for symbol in self._find(line)] for line in lines]

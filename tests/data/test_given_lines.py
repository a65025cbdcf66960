"""Lines from a program: strings make the folder that a file of them makes, ids keep their ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thinwire.data import given_lines as module
from thinwire.data.corpus import SPLITS, Corpus
from thinwire.data.prepare import prepare
from thinwire.data.tokenizers import Tokenizer
from thinwire.errors import UserError


def same(a: Corpus, b: Corpus) -> bool:
    names = ["tokenizer.json", "meta.json", *(f"{split}.bin" for split in SPLITS)]
    return all((a.path / name).read_bytes() == (b.path / name).read_bytes() for name in names)


@pytest.mark.parametrize("tokenizer", ["word", "bpe"])
def test_strings_are_a_text(tokenizer: str, book: Path, tmp_path: Path) -> None:
    lines = book.read_text(encoding="utf-8").splitlines()
    options: dict[str, Any] = {"tokenizer": tokenizer, "num_processes": 1}
    options |= {"vocab_size": 300} if tokenizer == "bpe" else {}
    read = prepare(book, out=tmp_path / "read", **options)
    # With their ends or without, several at once or each alone.
    given = [f"{lines[0]}\n", f"{lines[1]}\n{lines[2]}", *lines[3:]]
    handed = prepare(lines=(line for line in given), out=str(tmp_path / "handed"), **options)
    assert same(read, handed)


@pytest.mark.parametrize("block", [1 << 18, 5])
def test_ids_keep_their_ids(
    block: int, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_TOKENS", block)
    old = Corpus.open(toy_data)
    eos = old.meta.eos_id
    ids = old.ids("train")[:1500]
    lines = [line.tolist() for line in np.split(ids, np.flatnonzero(ids == eos) + 1)]

    def items() -> Iterator[Any]:
        yield lines[0]
        yield np.array(lines[1][:-1], dtype=np.int32)  # without its end
        yield [id for line in lines[2:9] for id in line]  # several lines
        yield iter(lines[9])
        yield from lines[10:]

    made = prepare(
        lines=items(), tokenizer=old.tokenizer_file, out=tmp_path / "data", valid=0.1, test=0.05
    )
    assert made.tokenizer_file.read_bytes() == old.tokenizer_file.read_bytes()
    tokenizer = Tokenizer.load(old.tokenizer_file)
    text = [tokenizer.decode(line).removesuffix("\n") for line in lines]
    # As their text would be divided and counted.
    (tmp_path / "text").write_text("\n".join(text) + "\n", encoding="utf-8")
    read = prepare(
        str(tmp_path / "text"),
        tokenizer=old.tokenizer_file,
        out=tmp_path / "read",
        valid=0.1,
        test=0.05,
        num_processes=1,
    )
    for split in SPLITS:
        assert made.ids(split).tolist() == read.ids(split).tolist()
    assert made.meta == read.meta
    assert Corpus.open(tmp_path / "data").meta == made.meta  # its digests are right


def test_an_empty_line_is_its_end(toy_data: Path, tmp_path: Path) -> None:
    file = Corpus.open(toy_data).tokenizer_file
    made = prepare(lines=[[5], [], [6]], tokenizer=file, out=tmp_path / "data", valid=0, test=0)
    eos = made.meta.eos_id
    assert made.ids("train").tolist() == [5, eos, eos, 6, eos]
    assert made.meta.splits["train"].lines == 3


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"lines": []}, "no text in the given lines"),
        ({"lines": ["", " "]}, "no text in the given lines"),
        ({"lines": "a text"}, "lines is one string"),
        ({}, "either texts or lines"),
        ({"lines": ["a", [1]]}, "line 2 of the given lines is no string"),
        ({"lines": ["a\0b"]}, "the given lines is no text file: there is a NUL"),
        ({"lines": ["a\ud800b"]}, "line 1 of the given lines is not UTF-8"),
        ({"lines": [[1, 2]]}, "need the tokenizer that they are of, a file, and it is word"),
        ({"lines": [[1], "a"], "tokenizer": "FILE"}, "line 2 of the given lines is no list of tok"),
        ({"lines": [[1], [1.5]], "tokenizer": "FILE"}, "line 2 .* is no list of token ids"),
        ({"lines": [1, 2], "tokenizer": "FILE"}, "line 1 .* is no list of token ids"),
        ({"lines": [[[1]]], "tokenizer": "FILE"}, "line 1 .* is no list of token ids"),
        ({"lines": [[1], [122]], "tokenizer": "FILE"}, "holds the id 122, and the tokenizer has 1"),
        ({"lines": [[-1]], "tokenizer": "FILE"}, "holds the id -1"),
        ({"lines": [[1]], "tokenizer": "FILE", "valid": "FILE"}, "are held out by a fraction"),
        ({"lines": [[1]], "tokenizer": "FILE", "vocab_size": 9}, "give no other"),
        ({"lines": [[1]], "tokenizer": "FILE"}, "has 1 lines, too few"),
    ],
)
def test_refused(given: dict[str, Any], sentence: str, toy_data: Path, tmp_path: Path) -> None:
    file = str(toy_data / "tokenizer.json")
    given = {key: file if value == "FILE" else value for key, value in given.items()}
    with pytest.raises(UserError, match=sentence):
        prepare(**given, out=tmp_path / "data", num_processes=1)
    assert not (tmp_path / "data").exists()

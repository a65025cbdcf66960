"""Files as lines."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from thinwire.data import sources
from thinwire.errors import UserError
from thinwire.inference.text import read_lines


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"one", ["one"]),
        (b"one\n", ["one"]),
        (
            b"one\r\n\n two words and \xf0\x9f\xa6\x86s \nthree",
            ["one", "", " two words and 🦆s ", "three"],
        ),
    ],
)
def test_whole_lines(
    content: bytes,
    lines: list[str],
    wait: bool,
    block: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", block)
    for file, raw in (("t.txt", content), ("t.gz", gzip.compress(content))):
        (tmp_path / file).write_bytes(raw)
        heard: list[int] = []
        found = list(read_lines([tmp_path / file], wait=wait, advance=heard.append))
        assert [line for some in found for line in some] == lines
        assert sum(heard) == len(raw)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writing = os.open(pipe, os.O_RDWR)
    found = read_lines([pipe], wait=False)
    os.write(writing, b"one\ntwo\nthr")
    assert next(found) == ["one", "two"]
    os.write(writing, b"ee\n")
    assert next(found) == ["three"]
    found.close()
    os.close(writing)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"one\ntw\0o\n", "no text file: there is a NUL byte in line 2"),
        (b"one\n\xe9t\xe9\n", "not UTF-8: line 2 holds the byte 0xe9"),
        (b"\xff\xfeo\0n\0e\0", "is UTF-16"),
    ],
)
def test_what_is_no_text(content: bytes, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        list(read_lines([file]))

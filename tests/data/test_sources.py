from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import sys
from pathlib import Path
from threading import Thread

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from thinwire.data import sources
from thinwire.data.sources import Block, find_sources, name_of, read_blocks, spooled, total_bytes
from thinwire.errors import UserError

PACKERS = {
    ".txt": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def read(*files: Path) -> list[Block]:
    return list(read_blocks(files, lambda _: None))


def content(*files: Path) -> bytes:
    return b"".join(block.data for block in read(*files))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.txt", "a.txt", "sub/c.txt", "sub/deep/d.md", ".hidden", ".git/x.txt"):
        file = tmp_path / "texts" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return tmp_path / "texts"


def names(found: list[Path], tree: Path) -> list[str]:
    return [str(file.relative_to(tree)) for file in found]


def test_a_folder_is_every_file_below_it_in_order(tree: Path) -> None:
    found = find_sources([str(tree)])
    assert names(found, tree) == ["a.txt", "b.txt", "sub/c.txt", "sub/deep/d.md"]


def test_globs_are_sorted_and_files_keep_the_order_given(tree: Path) -> None:
    assert names(find_sources([f"{tree}/*.txt"]), tree) == ["a.txt", "b.txt"]
    assert names(find_sources([f"{tree}/**/*.txt"]), tree) == ["a.txt", "b.txt", "sub/c.txt"]
    assert names(find_sources([f"{tree}/s*"]), tree) == ["sub/c.txt", "sub/deep/d.md"]
    given_order = [f"{tree}/b.txt", f"{tree}/a.txt"]
    assert names(find_sources(given_order), tree) == ["b.txt", "a.txt"]


def test_a_file_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    file = tmp_path / "[1].txt"
    file.write_text("one")
    assert find_sources([str(file)]) == [file]


def test_refuses_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*nothing\.txt"):
        find_sources([str(tmp_path / "nothing.txt")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there is no file in the folder"):
        find_sources([str(tmp_path / "empty")])
    with pytest.raises(UserError, match="no text was given"):
        find_sources([])
    with pytest.raises(UserError, match="only once"):
        find_sources(["-", "-"])


@pytest.mark.parametrize("suffix", PACKERS)
def test_unpacks(tmp_path: Path, suffix: str) -> None:
    text = "".join(f"line {number} é\n" for number in range(200_000)).encode()
    file = tmp_path / f"text{suffix}"
    file.write_bytes(PACKERS[suffix](text))
    heard: list[int] = []
    blocks = list(read_blocks([file], heard.append))
    assert b"".join(block.data for block in blocks) == text
    assert len(blocks) > 1 and all(block.data.endswith(b"\n") for block in blocks)
    assert sum(heard) == file.stat().st_size == total_bytes([file])


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_says_that_a_packed_file_is_damaged(tmp_path: Path, suffix: str) -> None:
    packed = PACKERS[suffix](b"some text\n" * 1000)
    for damaged in (packed[:-10], b"no such thing"):
        file = tmp_path / f"text{suffix}"
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"text\{suffix} is no whole \{suffix} file"):
            read(file)


def test_a_zst_file_cut_anywhere_is_refused_and_frames_follow_one_another(tmp_path: Path) -> None:
    file = tmp_path / "text.zst"
    pack = PACKERS[".zst"]
    text = "".join(f"line {number}\n" for number in range(100)).encode()
    packed = pack(text)
    for length in range(1, len(packed)):
        file.write_bytes(packed[:length])
        with pytest.raises(UserError, match=r"is no whole \.zst file: it ends before its end"):
            read(file)
    skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc"  # RFC 8878, 3.1.2
    file.write_bytes(packed + skippable + pack(b"") + packed)
    assert content(file) == text + text


def test_says_what_zst_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    file = tmp_path / "text.zst"
    file.write_bytes(b"")
    with pytest.raises(UserError, match=r"pip install zstandard"):
        read(file)


@given(st.lists(st.text("ab \né", max_size=40), max_size=12), st.integers(4, 30))
def test_blocks_are_the_text(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], size: int
) -> None:
    folder = tmp_path_factory.mktemp("blocks")
    files = []
    for number, part in enumerate(parts):
        files.append(folder / f"{number:02}")
        files[-1].write_text(part, encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "BLOCK_BYTES", size)
        blocks = read(*files)
    ended = "".join(part if part.endswith("\n") or not part else part + "\n" for part in parts)
    assert b"".join(block.data for block in blocks).decode() == ended
    for file in files:
        data = b""
        for block in blocks:
            if block.source == str(file):
                assert block.line == 1 + data.count(b"\n")
                assert data.endswith(b"\n") or not data or block.data.startswith((b" ", b"\n"))
                data += block.data


def test_a_long_line_is_cut_before_a_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 16)
    file = tmp_path / "text8"
    file.write_text("one two three four five six seven")
    blocks = [block.data for block in read(file)]
    assert b"".join(blocks) == b"one two three four five six seven\n"
    assert len(blocks) > 1 and all(block.startswith(b" ") for block in blocks[1:])


def test_a_long_line_is_cut_before_other_white_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 16)
    monkeypatch.setattr(sources, "LONGEST_WORD_BYTES", 100)
    file = tmp_path / "table"
    file.write_bytes(b"one\ttwo\tthree\tfour\t" * 50 + b"\r\nnext")
    assert content(file) == b"one\ttwo\tthree\tfour\t" * 50 + b"\nnext\n"


def test_a_byte_order_mark_may_come_in_pieces() -> None:
    for pieces in ([b"\xef", b"\xbb", b"\xbf", b"one"], [b"\xef\xbb\xbfone"]):
        assert b"".join(sources._without_mark(iter(pieces), "it")) == b"one"
    assert b"".join(sources._without_mark(iter([b"\xef", b"\xbc\x81"]), "it")) == b"\xef\xbc\x81"
    with pytest.raises(UserError, match="it is UTF-16"):
        list(sources._without_mark(iter([b"\xff\xfea\0"]), "it"))


def test_refuses_a_line_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 16)
    monkeypatch.setattr(sources, "LONGEST_WORD_BYTES", 100)
    file = tmp_path / "blob"
    file.write_bytes(b"short\n" + b"x" * 1000)
    with pytest.raises(UserError, match=r"line 2 of .*blob has .* and 100 are the most"):
        read(file)


def test_line_ends_and_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "windows.txt"
    file.write_bytes("\ufeffone\r\ntwo\r\n\r\nthree".encode())
    assert content(file) == b"one\ntwo\n\nthree\n"
    unix = tmp_path / "unix.txt"
    unix.write_bytes(b"\xef\xbb\xbf")
    assert content(unix) == b""


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"fine\nbinary \0 here\n", r"bad is no text file: there is a NUL byte in line 2"),
        (b"fine\nfine\ncaf\xe9\n", r"bad is not UTF-8: line 3 holds the byte 0xe9"),
    ],
)
def test_says_where_a_file_is_no_utf8(tmp_path: Path, data: bytes, sentence: str) -> None:
    file = tmp_path / "bad"
    file.write_bytes(data)
    with pytest.raises(UserError, match=sentence):
        [block.text() for block in read(file)]


def test_recognises_utf16(tmp_path: Path) -> None:
    file = tmp_path / "notepad.txt"
    file.write_text("text", encoding="utf-16")
    with pytest.raises(UserError, match=r"notepad\.txt is UTF-16, not UTF-8"):
        read(file)


def test_standard_input_is_read_once_and_can_be_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\ntwo")))
    found = find_sources(["-"])
    assert total_bytes(found) is None
    copies = spooled(found, tmp_path)
    assert content(*copies) == content(*copies) == b"one\ntwo\n"


def test_says_that_a_file_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone cannot be read: No such file"):
        read(tmp_path / "gone")


def test_other_packers_are_binary(tmp_path: Path) -> None:
    file = tmp_path / "text.bz2"
    file.write_bytes(bz2.compress(b"text\n" * 1000))
    with pytest.raises(UserError, match=r"text\.bz2 is (no text file|not UTF-8)"):
        [block.text() for block in read(file)]


def test_a_copy_is_called_what_its_source_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\ntwo")))
    pipe = tmp_path / "a pipe.gz"
    os.mkfifo(pipe)
    writer = Thread(target=lambda: pipe.write_bytes(gzip.compress(b"three")))
    writer.start()
    plain = tmp_path / "plain"
    plain.write_text("four")
    found = spooled([Path("-"), pipe, plain], tmp_path)
    writer.join()
    assert [name_of(source) for source in found] == ["standard input", str(pipe), str(plain)]
    blocks = list(read_blocks(found, lambda _: None))
    assert [block.data for block in blocks] == [b"one\n", b"two\n", b"three\n", b"four\n"]
    assert [block.source for block in blocks][1:] == ["standard input", str(pipe), str(plain)]

"""Where raw text comes from: files, folders, globs, compressed files, standard input.

Text is read as blocks of bytes that end with a line, each about a mebibyte, so that memory does not
depend on the size of a file. A line that is longer than a block is cut before white space.
"""

from __future__ import annotations

import glob
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import quote, unquote

from thinwire.errors import UserError

BLOCK_BYTES = 1 << 20
LONGEST_WORD_BYTES = 1 << 24  # what a process may have to hold at once
STDIN = "-"
COPIES = "copies"
COPY = ".copy"  # not a suffix that says how it is compressed, for it no longer is
LONGEST_NAME = 200

_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_WHITE_SPACE = (b" ", b"\t", b"\v", b"\f", b"\r")
# A zstd block has at most 128 KiB of text in at least 4 bytes: these bytes give at most 32 MiB.
_ZSTD_BYTES = 1 << 10
_PACKED_BYTES = 1 << 16


@dataclass(frozen=True)
class Block:
    """A piece of a source: some whole lines, or a part of a long line."""

    source: str
    """Name of the file, for messages."""

    line: int
    """Line number of its first byte, from 1."""

    data: bytes
    """UTF-8; lines end in `\\n`. If the last line does not, it continues in the next block."""

    def text(self) -> str:
        """Decode the text. Raises UserError: it is not UTF-8, or has a NUL byte."""
        if (at := self.data.find(b"\0")) >= 0:
            raise UserError(
                f"{self.source} is no text file: there is a NUL byte in line {self._line_at(at)}"
            )
        try:
            return self.data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.source} is not UTF-8: line {self._line_at(error.start)} holds the byte "
                f"0x{self.data[error.start]:02x}; convert the file, with iconv for instance"
            ) from None

    def _line_at(self, offset: int) -> int:
        return self.line + self.data.count(b"\n", 0, offset)


def find_sources(texts: Iterable[str]) -> list[Path]:
    """Find the files that the names stand for, in the order given; `-` is standard input.

    A folder stands for every file below it, and a glob for every match, in sorted order. Names that
    begin with a dot are left out.
    """
    sources: list[Path] = []
    for text in texts:
        path = Path(text)
        if text == STDIN or path.is_file() or (path.exists() and not path.is_dir()):
            found = [path]
        elif path.is_dir():
            found = _files_below(path)
        else:
            matches = (Path(match) for match in sorted(glob.glob(text, recursive=True)))
            found = [file for match in matches for file in _files_below(match)]
            found = list(dict.fromkeys(found))  # `**` finds a folder and what is in it
            if not found:
                raise UserError(f"there is no file {text}")
        if not found:
            raise UserError(f"there is no file in the folder {text}")
        sources += found
    if not sources:
        raise UserError("no text was given")
    if sources.count(Path(STDIN)) > 1:
        raise UserError(f"standard input ({STDIN}) can be read only once")
    return sources


def name_of(source: Path) -> str:
    """The name of a source in messages."""
    if source.parent.parent.name == COPIES:
        return unquote(source.name.removesuffix(COPY))
    return "standard input" if source == Path(STDIN) else str(source)


def total_bytes(sources: Iterable[Path]) -> int | None:
    """The total size of the files on disk; None if it is not known, as for a pipe."""
    total = 0
    for source in sources:
        if source == Path(STDIN) or not source.is_file():
            return None
        total += source.stat().st_size
    return total


def read_blocks(
    sources: Sequence[Path], advance: Callable[[int], None], *, wait: bool = True
) -> Iterator[Block]:
    """Yield the text of all sources, one after the other.

    `advance` is called with the number of bytes read from disk. Without `wait`, a block of a pipe
    has only the lines that are ready.
    """
    for source in sources:
        yield from _read_source(source, advance, wait)


def _files_below(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )


def _read_source(source: Path, advance: Callable[[int], None], wait: bool) -> Iterator[Block]:
    name = name_of(source)
    line, rest, at_line_start = 1, b"", True
    for data in _without_mark(_read_pieces(source, name, advance, wait), name):
        rest += data
        end = rest.rfind(b"\n") + 1
        if not end and len(rest) >= BLOCK_BYTES:
            # The white space goes to the next block, before its word.
            end = max(map(rest.rfind, _WHITE_SPACE))
            if end <= 0:
                if len(rest) > LONGEST_WORD_BYTES:
                    raise UserError(
                        f"line {line} of {name} has {len(rest):,} bytes and more without white "
                        f"space, and {LONGEST_WORD_BYTES:,} are the most: break it into lines"
                    )
                continue
        if end > 0:
            block, rest = rest[:end], rest[end:]
            at_line_start = block.endswith(b"\n")
            block = block.replace(b"\r\n", b"\n")
            yield Block(name, line, block)
            line += block.count(b"\n")
    if rest or not at_line_start:
        yield Block(name, line, rest + b"\n")


def _without_mark(pieces: Iterator[bytes], name: str) -> Iterator[bytes]:
    """The same text without a byte order mark, which may arrive in several pieces."""
    begin = b""
    for piece in pieces:
        begin += piece
        if len(begin) >= len(_BOM) or not _BOM.startswith(begin):
            break
    if begin.startswith(_UTF16):
        raise UserError(f"{name} is UTF-16, not UTF-8: convert it, with iconv for instance")
    yield begin.removeprefix(_BOM)
    yield from pieces


def _read_pieces(
    source: Path, name: str, advance: Callable[[int], None], wait: bool
) -> Iterator[bytes]:
    try:
        with nullcontext(sys.stdin.buffer) if source == Path(STDIN) else source.open("rb") as raw:
            counted = cast("IO[bytes]", _Counted(raw, advance, wait))
            stream, damage = _decompressed(counted, source)
            try:
                while data := stream.read(BLOCK_BYTES):
                    yield data
            except damage as error:
                kind = source.suffix.lower()
                raise UserError(f"{name} is no whole {kind} file: {error}") from error
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}") from error


class _Counted(io.RawIOBase):
    """A readable stream that reports the number of bytes read."""

    def __init__(self, stream: IO[bytes], advance: Callable[[int], None], wait: bool) -> None:
        # Files and standard input are opened buffered, which the type `IO` does not express.
        self._read = stream.read if wait else cast("io.BufferedReader", stream).read1
        self._advance = advance

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._read(size)
        self._advance(len(data))
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


_Damage = tuple[type[Exception], ...]


def _decompressed(stream: IO[bytes], source: Path) -> tuple[Any, _Damage]:
    """A readable stream, and the errors that it raises if the file is damaged."""
    suffix = source.suffix.lower()
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=stream, mode="rb"), (EOFError, zlib.error, gzip.BadGzipFile)
    if suffix == ".xz":
        return lzma.LZMAFile(stream, "rb"), (EOFError, lzma.LZMAError)
    if suffix == ".zst":
        try:
            import zstandard
        except ImportError:
            raise UserError(
                f"{source} needs the package zstandard: pip install zstandard"
            ) from None
        make_frame = zstandard.ZstdDecompressor().decompressobj
        return _Unzstd(stream, make_frame), (EOFError, zstandard.ZstdError)
    return stream, ()


class _Unzstd:
    """The text of a stream of zstd frames.

    zstandard's own reader takes a file that was cut for one that ends.
    """

    def __init__(self, stream: IO[bytes], make_frame: Callable[[], Any]) -> None:
        self._stream, self._make_frame = stream, make_frame
        self._frame: Any = None
        self._packed, self._text = b"", b""

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end."""
        while not self._text:
            self._packed = self._packed or self._stream.read(_PACKED_BYTES)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("it ends before its end was marked")
                return b""
            if self._frame is None:
                self._frame = self._make_frame()
            some, self._packed = self._packed[:_ZSTD_BYTES], self._packed[_ZSTD_BYTES:]
            self._text = self._frame.decompress(some)
            if self._frame.eof:
                self._packed = self._frame.unused_data + self._packed
                self._frame = None
        text, self._text = self._text[:size], self._text[size:]
        return text


def spooled(sources: Iterable[Path], folder: Path) -> list[Path]:
    """The same sources; those that can be read only once are copied to files in `folder`."""
    return [
        source if source.is_file() and source != Path(STDIN) else _copied(source, folder, number)
        for number, source in enumerate(sources)
    ]


def _copied(source: Path, folder: Path, number: int) -> Path:
    name = name_of(source)
    copy = copy_named(name, folder, number)
    with copy.open("wb") as file:
        file.writelines(_read_pieces(source, name, lambda _: None, True))
    return copy


def copy_named(name: str, folder: Path, number: int) -> Path:
    """The path in `folder` of a copy that messages call by this name."""
    copy = folder / COPIES / str(number) / (quote(name, safe="")[-LONGEST_NAME:] + COPY)
    copy.parent.mkdir(parents=True)
    return copy

"""The first phase of `prepare`: encode blocks of text to provisional ids in temporary files.

It uses all cores. Every process appends to files of its own, a *shard*: `.ids` has the ids,
`.lines` the totals of each line, `.tokens` the tokens of the provisional ids, and `.lengths` the
number of characters of each token. A process whose encoder is full begins another shard.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain, islice, pairwise
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from thinwire.data.encoders import Encoder
from thinwire.data.sources import Block
from thinwire.errors import UserError
from thinwire.interrupts import interrupt_blocked

# A text with fewer blocks is read faster by one process than others start.
BLOCKS_WORTH_PROCESSES = 6

_NUMBER = np.dtype("<u4")

Numbers = npt.NDArray[np.uint32]
A = TypeVar("A")
B = TypeVar("B")


class Totals(NamedTuple):
    """The size of one or more lines."""

    tokens: int
    """Number of ids, ends of lines included."""

    words: int
    """Number of words between ASCII white space."""

    characters: int
    """Number of characters, line ends included."""


class Piece(NamedTuple):
    """The position of one block in a shard."""

    shard: Path
    """The path of the shard's files without their suffix."""

    first_token: int
    """Its first position in `.ids`."""

    first_line: int
    """Its first position in `.lines`."""

    num_lines: int

    ends_line: bool
    """Whether the last line ends in this piece; if not, it continues in the next one."""

    totals: Totals

    def read_ids(self) -> Numbers:
        """The provisional ids, [tokens]."""
        return _read(self.shard, ".ids", self.first_token, self.totals.tokens)

    def read_lines(self) -> npt.NDArray[np.int64]:
        """The `Totals` of each line, [L, 3]."""
        numbers = _read(self.shard, ".lines", 3 * self.first_line, 3 * self.num_lines)
        return numbers.reshape(-1, 3).astype(np.int64)


def read_tokens(shard: Path) -> list[str]:
    """The tokens of the provisional ids of a shard."""
    text = shard.with_suffix(".tokens").read_bytes().decode()
    ends = np.cumsum(np.fromfile(shard.with_suffix(".lengths"), _NUMBER), dtype=np.int64).tolist()
    return [text[begin:end] for begin, end in pairwise([0, *ends])]


class Spooler:
    """Encodes blocks and writes shards in one process."""

    def __init__(self, make_encoder: Callable[[], Encoder], folder: Path) -> None:
        self._make_encoder, self._folder = make_encoder, folder
        self._encoder: Encoder | None = None
        self._num_shards = 0
        self._num_tokens = 0

    def __call__(self, block: Block) -> Piece:
        """Encode one block."""
        text = block.text()
        if self._encoder is None or self._encoder.is_full:
            self._encoder = self._make_encoder()
            self._shard = self._folder / f"{os.getpid()}-{self._num_shards}"
            self._num_shards += 1
            self._num_tokens = self._num_lines = 0
        ids, tokens_L = self._encoder.encode(text)
        words_L, characters_L = _words_and_characters(block.data)
        lines_L3 = np.column_stack((tokens_L, words_L, characters_L))
        # There is no separator: a token of a given tokenizer may contain any character.
        tokens = self._encoder.new_tokens()
        lengths = np.fromiter(map(len, tokens), _NUMBER, len(tokens))
        self._append(".ids", ids.astype(_NUMBER, copy=False).tobytes())
        self._append(".lines", lines_L3.astype(_NUMBER).tobytes())
        self._append(".tokens", "".join(tokens).encode())
        self._append(".lengths", lengths.tobytes())
        piece = Piece(
            shard=self._shard,
            first_token=self._num_tokens,
            first_line=self._num_lines,
            num_lines=len(lines_L3),
            ends_line=text.endswith("\n"),
            totals=Totals(*lines_L3.sum(axis=0).tolist()),
        )
        self._num_tokens += piece.totals.tokens
        self._num_lines += piece.num_lines
        return piece

    def _append(self, suffix: str, data: bytes) -> None:
        with self._shard.with_suffix(suffix).open("ab") as file:
            file.write(data)


def spool(
    blocks: Iterable[Block],
    make_encoder: Callable[[], Encoder],
    folder: Path,
    num_processes: int,
) -> Iterator[Piece]:
    """The pieces of all blocks, in their order."""
    blocks = iter(blocks)
    first = list(islice(blocks, BLOCKS_WORTH_PROCESSES))
    blocks = chain(first, blocks)
    if num_processes == 1 or len(first) < BLOCKS_WORTH_PROCESSES:
        yield from map(Spooler(make_encoder, folder), blocks)
        return
    with _processes(num_processes, make_encoder, folder) as pool:
        yield from map_in_order(pool, _spool_block, blocks, window=2 * num_processes + 2)


def map_in_order(
    pool: Executor, function: Callable[[A], B], items: Iterable[A], window: int
) -> Iterator[B]:
    """`map` on a pool, with at most `window` items under way."""
    under_way: deque[Future[B]] = deque()
    for item in items:
        with interrupt_blocked():  # it starts processes, which leave Ctrl+C to this one
            under_way.append(pool.submit(function, item))
        if len(under_way) == window:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


def _read(shard: Path, suffix: str, first: int, count: int) -> Numbers:
    offset = first * _NUMBER.itemsize
    return np.fromfile(shard.with_suffix(suffix), _NUMBER, count=count, offset=offset)


@contextmanager
def _processes(
    number: int, make_encoder: Callable[[], Encoder], folder: Path
) -> Iterator[ProcessPoolExecutor]:
    # Spawned, because a fork would copy locks that threads of the caller hold.
    pool = ProcessPoolExecutor(
        number, get_context("spawn"), initializer=_start, initargs=(make_encoder, folder)
    )
    try:
        yield pool
    except BrokenProcessPool:
        raise UserError(
            f"one of the {number} processes of prepare has died: for want of memory, or because a "
            "script calls it outside of `if __name__ == '__main__':`"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_spooler: Spooler  # of this process


def _start(make_encoder: Callable[[], Encoder], folder: Path) -> None:
    global _spooler
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is the parent's to handle
    Thread(target=_end_with_parent, name="parent", daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _spooler = Spooler(make_encoder, folder)


def _end_with_parent() -> None:
    """End as soon as the parent has ended, even by kill -9; the pool itself would never end."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)


def _spool_block(block: Block) -> Piece:
    return _spooler(block)


_IS_SPACE = np.zeros(256, dtype=np.bool_)
_IS_SPACE[list(b" \t\n\v\f\r")] = True


def _words_and_characters(
    data: bytes,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The number of words and of characters (line end included) of each line of UTF-8 text."""
    bytes_N = np.frombuffer(data, np.uint8)
    starts_L = np.append(0, np.flatnonzero(bytes_N == ord("\n")) + 1)
    starts_L = starts_L[starts_L < len(data)]
    space_N = _IS_SPACE[bytes_N]
    begins_word_N = ~space_N
    begins_word_N[1:] &= space_N[:-1]
    begins_character_N = (bytes_N & 0xC0) != 0x80
    words_L, characters_L = (
        np.add.reduceat(mask_N, starts_L, dtype=np.int64)
        for mask_N in (begins_word_N, begins_character_N)
    )
    return words_L, characters_L

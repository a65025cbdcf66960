"""Text files as lines, a block at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from thinwire.data.sources import read_blocks


def read_lines(
    sources: Sequence[Path],
    *,
    wait: bool = True,
    advance: Callable[[int], None] = lambda num_bytes: None,
) -> Iterator[list[str]]:
    """The lines of some files, without their ends, about a megabyte at a time.

    Args:
        sources: what `find_sources` found.
        wait: whether to fill a block before it is passed on; otherwise what is written to a pipe
            comes out as soon as the pipe is empty.
        advance: hears of the bytes read from disk.

    Raises:
        UserError: a file that is no UTF-8 text.
    """
    begun: list[str] = []  # a line longer than a block comes in pieces
    for block in read_blocks(sources, advance, wait=wait):
        first, *others = block.text().split("\n")
        begun.append(first)
        if others:
            *lines, last = ["".join(begun), *others]
            begun = [last]
            yield lines

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
    """Yield the lines of some files, without their ends, in lists of about a megabyte.

    Args:
        sources: the files, from `find_sources`.
        wait: whether to wait until a block is full; if not, lines from a pipe are yielded as soon
            as the pipe is empty.
        advance: called with the number of bytes read from disk since the last call.

    Raises:
        UserError: a file is not UTF-8 text.
    """
    begun: list[str] = []  # a line longer than a block comes in pieces
    for block in read_blocks(sources, advance, wait=wait):
        first, *others = block.text().split("\n")
        begun.append(first)
        if others:
            *lines, last = ["".join(begun), *others]
            begun = [last]
            yield lines

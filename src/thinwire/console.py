"""The terminal as people see it: everything for people goes to standard error.

Standard output is left to results, so that it can be piped. What standard error cannot take,
because its disk is full or its reader has gone, is lost: it ends no run.
"""

from __future__ import annotations

import sys
import unicodedata
from contextlib import suppress
from importlib.util import find_spec
from typing import IO, cast

from rich.console import Console
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from thinwire.interrupts import interrupt_later

# Control characters, and marks that turn the direction of a line or break it.
_ODD_CATEGORIES = ("Cc", "Zl", "Zp")
_ODD_DIRECTIONS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


class StandardError:
    """What `sys.stderr` is at the moment; what it cannot take is lost."""

    def write(self, text: str) -> int:
        """Write what can be written."""
        with suppress(OSError, ValueError):  # ValueError: it is closed
            _stderr().write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        with suppress(OSError, ValueError):
            _stderr().flush()

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        try:
            return _stderr().isatty()
        except (AttributeError, ValueError):
            return False

    @property
    def encoding(self) -> str:
        """How it writes characters."""
        return getattr(_stderr(), "encoding", None) or "utf-8"


def _stderr() -> IO[str]:
    # While a line moves, rich puts something in its place that prints by way of the console.
    return cast(IO[str], getattr(sys.stderr, "rich_proxied_file", sys.stderr))


# Names of files and words of a corpus are data: square brackets in them are no markup.
console = Console(file=cast(IO[str], StandardError()), highlight=False, markup=False, emoji=False)


def printable(text: str) -> str:
    """A text in one line that no terminal obeys: what it would obey is escaped."""
    return "".join(
        c.encode("unicode_escape").decode("ascii")
        if unicodedata.category(c) in _ODD_CATEGORIES
        or unicodedata.bidirectional(c) in _ODD_DIRECTIONS
        else c
        for c in text
    )


def print_line(sentence: str, style: str = "") -> None:
    """Tell people something, in one line that stays; names of theirs in it do no harm."""
    console.print(printable(sentence), style=style, soft_wrap=True)


def warn(sentence: str) -> None:
    """Say that something may not be as the user thinks."""
    print_line(f"Warning: {sentence}", "yellow")


class LiveLine(Live):
    """What moves; Ctrl+C cannot leave it half ended, to be printed again below what follows."""

    def stop(self) -> None:
        """See `rich.live.Live`."""
        with interrupt_later():
            super().stop()


class _Bar(Progress):
    def stop(self) -> None:
        with interrupt_later():
            super().stop()


def progress_bar(*columns: ProgressColumn) -> Progress:
    """A bar on standard error: description, bar, `columns` (default: m of n), time left.

    In a notebook it needs the package ipywidgets, and is left out without it.
    """
    return _Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *(columns or (MofNCompleteColumn(),)),
        TimeRemainingColumn(),
        console=console,
        disable=console.is_jupyter and find_spec("ipywidgets") is None,
    )

"""The terminal as people see it: everything for people goes to standard error.

Standard output is left to results, so that it can be piped.
"""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

# Names of files and words of a corpus are data: square brackets in them are no markup.
console = Console(stderr=True, highlight=False, markup=False)


def warn(sentence: str) -> None:
    """Say that something may not be as the user thinks."""
    console.print(f"Warning: {sentence}", style="yellow", markup=False, soft_wrap=True)


def progress_bar(*columns: ProgressColumn) -> Progress:
    """A bar on standard error: description, bar, `columns` (default: m of n), time left."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *(columns or (MofNCompleteColumn(),)),
        TimeRemainingColumn(),
        console=console,
    )

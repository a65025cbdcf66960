"""Describes in a sentence how the budget of a resumed run was changed.

A larger budget trains the run further; a smaller one ends it sooner. A budget below what is already
spent is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from thinwire.config import RunSettings
from thinwire.errors import UserError
from thinwire.runs.clock import Budget

Change = tuple[str, float | None, float | None]


def budget_sentences(
    before: RunSettings, now: RunSettings, spent: Mapping[str, float], run: Path
) -> list[str]:
    """A sentence for each limit that has changed.

    Args:
        before: the settings before the run was resumed.
        now: the settings of the resumed run.
        spent: seconds, tokens and epochs, by these names.
        run: the run folder.

    Raises:
        UserError: a limit was lowered below what is spent.
    """
    sentences = []
    for name, old, new in _changes(before, now):
        lowered = new is not None and (old is None or new < old)
        if lowered and new is not None and new < spent[name]:
            raise UserError(
                f"--{name} is {_said(new)}, but {run} has trained for {_said(spent[name])} {name} "
                "already: a resumed run's budget includes what is spent, so give a larger one"
            )
        sentences.append(
            f"Its budget in {name} was {_said(old)} and is now {_said(new)}; "
            f"{_said(spent[name])} are spent."
        )
    return sentences


def _changes(before: RunSettings, now: RunSettings) -> Iterator[Change]:
    old, new = Budget(before).limits, Budget(now).limits
    for name, limit in new.items():
        if limit != old[name]:
            yield name, old[name], limit


def _said(limit: float | None) -> str:
    return "unlimited" if limit is None else f"{limit:,.6g}"

"""The effect of an adaptation: perplexity of held-out new and old text, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from rich.table import Table

from thinwire.data.config import DataConfig
from thinwire.data.tokenizers import Tokenizer
from thinwire.language_model import LanguageModel
from thinwire.runs.evaluation import Ids, evaluate

OLD_TOKENS = 50_000  # the number of tokens of held-out old text to score, spread over the text


@dataclass(frozen=True)
class Measured:
    """An exact evaluation, in the form of adapt.json.

    Attributes:
        ppl: perplexity of all tokens; None: infinite.
        ppl_known: perplexity of known words; None: infinite, or there are none.
        tokens_unknown: number of tokens outside the vocabulary.
        tokens_scored: number of all tokens.
    """

    ppl: float | None
    ppl_known: float | None
    tokens_unknown: int
    tokens_scored: int


@dataclass(frozen=True)
class Change:
    """The perplexity of the same text before and after."""

    before: Measured
    after: Measured

    def to_json(self) -> dict[str, Any]:
        """The same as nested dicts."""
        return asdict(self)


@dataclass(frozen=True)
class Account:
    """The change on new text, and on old text; None: there is no held-out old text."""

    new: Change
    old: Change | None

    def to_json(self) -> dict[str, Any]:
        """The same as nested dicts."""
        return {
            "new": self.new.to_json(),
            "old": None if self.old is None else self.old.to_json(),
        }

    def table(self) -> Table:
        """The same as a table to print."""
        table = Table(box=None, title="Held-out text", title_justify="left")
        table.add_column("")
        for column in ("before", "after", "change"):
            table.add_column(column, justify="right")
        for name, change in (("new", self.new), ("old", self.old)):
            if change is None:
                continue
            before, after = change.before, change.after
            for what, b, a in (
                ("perplexity", before.ppl, after.ppl),
                ("  of known words", before.ppl_known, after.ppl_known),
            ):
                table.add_row(f"{name} text, {what.strip()}", _two(b), _two(a), _percent(b, a))
            table.add_row(
                f"{name} text, unknown words",
                f"{before.tokens_unknown:,}",
                f"{after.tokens_unknown:,}",
                _percent(before.tokens_unknown, after.tokens_unknown),
            )
        return table


def measure(
    model: LanguageModel, tokenizer: Tokenizer, ids: Ids, data: DataConfig, max_tokens: int = 0
) -> Measured | None:
    """The exact perplexity of a text; None: it has no tokens."""
    if not len(ids):
        return None
    found = evaluate(
        model,
        ids,
        eos_id=tokenizer.eos_id,
        unk_id=tokenizer.unk_id,
        data=data,
        max_tokens=max_tokens,
    )
    return Measured(
        _finite(found.ppl), _finite(found.ppl_known), found.tokens_unknown, found.tokens_scored
    )


def measured_from(content: Mapping[str, Any] | None) -> Measured | None:
    """The inverse of `asdict`."""
    return None if content is None else Measured(**content)


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def _two(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}"


def _percent(before: float | None, after: float | None) -> str:
    return f"{after / before - 1:+.1%}" if before and after is not None else "-"

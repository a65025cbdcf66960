"""Staleness: how late gradients arrive, and its distribution."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class Staleness:
    """How stale a push was.

    Attributes:
        tau: the number of updates between the answer to its pull and its arrival.
        changed_rows: the fraction of its rows of tables that these updates have changed.
    """

    tau: int
    changed_rows: float


class StalenessCounts:
    """The distribution of tau over some pushes."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._changed_rows = 0.0

    def add(self, staleness: Staleness) -> None:
        """Count a push."""
        self._counts[staleness.tau] += 1
        self._changed_rows += staleness.changed_rows

    def summary(self) -> dict[str, float]:
        """Mean, median, 90th percentile and maximum of tau, and the mean part of changed rows."""
        total = self._counts.total()
        if not total:
            return {}
        return {
            "mean": sum(tau * count for tau, count in self._counts.items()) / total,
            "p50": self._quantile(0.5),
            "p90": self._quantile(0.9),
            "max": max(self._counts),
            "changed_rows": self._changed_rows / total,
        }

    def _quantile(self, part: float) -> int:
        """The smallest tau that the given fraction of the pushes does not exceed."""
        left = part * self._counts.total()
        for tau, count in sorted(self._counts.items()):
            left -= count
            if left <= 0:
                return tau
        return max(self._counts)

"""A mean over all times but the first, of as many as it takes."""

from __future__ import annotations

from itertools import cycle

import pytest

from thinwire.plan import timing
from thinwire.plan.timing import mean_seconds


@pytest.mark.parametrize(
    ("pattern", "mean", "times"),
    [
        ([0.0625], 0.0625, 4),  # a fourth of a second at least
        ([0.5], 0.5, 2),  # one time says nothing of how they differ
        ([0.0625, 0.4375], 0.25, 8),  # two seconds at most, where they differ so much
        ([3.0], 3.0, 1),
    ],
)
def test_as_often_as_it_takes(
    monkeypatch: pytest.MonkeyPatch, pattern: list[float], mean: float, times: int
) -> None:
    now, taken, lengths = 0.0, 0, cycle(pattern)

    def action() -> None:
        nonlocal now, taken
        # The first time is left out.
        now += next(lengths) if taken else 10.0
        taken += 1

    monkeypatch.setattr(timing, "perf_counter", lambda: now)
    monkeypatch.setattr(timing, "LEAST_SECONDS", 0.25)
    monkeypatch.setattr(timing, "MOST_SECONDS", 2.0)
    assert mean_seconds(action) == mean
    assert taken == 1 + times

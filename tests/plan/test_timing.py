"""A mean over all times but the first."""

from __future__ import annotations

import pytest

from thinwire.plan import timing
from thinwire.plan.timing import mean_seconds


@pytest.mark.parametrize(("times_as_long", "times"), [(1.0, 1 + 2), (2.5, 1 + 4)])
def test_the_first_time_does_not_count(
    monkeypatch: pytest.MonkeyPatch, times_as_long: float, times: int
) -> None:
    now, taken = 0.0, 0

    def action() -> None:
        nonlocal now, taken
        now += 0.25 if taken else 10.0
        taken += 1

    monkeypatch.setattr(timing, "perf_counter", lambda: now)
    monkeypatch.setattr(timing, "PROBE_SECONDS", 0.4)
    assert mean_seconds(action, times_as_long) == 0.25
    assert taken == times

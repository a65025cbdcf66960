"""Plans in a moment: what is tested here is not how well they foresee."""

from __future__ import annotations

import pytest

from thinwire.plan import plan, timing


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the tests' process; commands that are started measure as long as ever."""
    monkeypatch.setattr(plan, "SECONDS", 0.1)
    monkeypatch.setattr(timing, "PROBE_SECONDS", 0.02)

"""Plans in a moment: what is tested here is not how well they foresee. And rounds, counted."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from thinwire.plan import link, plan, timing
from thinwire.transport.c10d import C10d


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the tests' process; commands that are started measure as long as ever."""
    monkeypatch.setattr(plan, "SECONDS", 0.1)
    monkeypatch.setattr(link, "LEAST_SECONDS", 0.1)
    monkeypatch.setattr(timing, "LEAST_SECONDS", 0.01)
    monkeypatch.setattr(timing, "MOST_SECONDS", 0.02)


@pytest.fixture
def swaps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rank of each worker of this process that takes part in a round, as often as it does."""
    ranks: list[int] = []
    swap = C10d._all_to_all

    def noted(member: C10d, *arguments: Any) -> list[Tensor]:
        ranks.append(member.rank)
        return swap(member, *arguments)

    monkeypatch.setattr(C10d, "_all_to_all", noted)
    return ranks

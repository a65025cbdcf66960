from __future__ import annotations

import os

import pytest

from thinwire.cores import num_cores, num_threads
from thinwire.errors import UserError


def test_processes_share_the_cores_that_they_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 5, 7}, raising=False)
    assert num_cores() == 5
    assert [num_threads(0, n) for n in (1, 2, 5, 8)] == [5, 2, 1, 1]
    assert num_threads(3, 2) == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert num_cores() == 64


@pytest.mark.parametrize(("cores", "most"), [(1, 64), (2, 64), (64, 256)])
def test_no_library_is_asked_for_more_threads_than_it_could_start(
    cores: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenMP ends a process for which the system starts no further thread."""
    monkeypatch.setattr("thinwire.cores.num_cores", lambda: cores)
    assert num_threads(most) == most
    for asked in (most + 1, 1000, 2**31, 2**63 - 1):
        with pytest.raises(
            UserError, match=f"{asked} threads .* must be {most} or fewer on {cores}"
        ):
            num_threads(asked)

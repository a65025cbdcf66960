from __future__ import annotations

import os

import pytest

from thinwire.cores import num_cores, num_threads


def test_processes_share_the_cores_that_they_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 5, 7}, raising=False)
    assert num_cores() == 5
    assert [num_threads(0, n) for n in (1, 2, 5, 8)] == [5, 2, 1, 1]
    assert num_threads(3, 2) == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert num_cores() == 64

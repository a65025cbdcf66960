"""The training clock stands still where it must, and budgets are spent by it."""

from __future__ import annotations

import pytest

from thinwire.config import DEFAULT_SECONDS, RunSettings
from thinwire.runs import clock as module
from thinwire.runs.clock import Budget, Clock


class Watch:
    """A `perf_counter` that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    made = Watch()
    monkeypatch.setattr(module, "perf_counter", made)
    return made


def test_seconds_stand_still_while_paused(watch: Watch) -> None:
    clock = Clock()
    watch.now += 50
    assert (clock.seconds, clock.wall_seconds) == (0, 0)  # before the first step
    clock.start()
    watch.now += 3
    with clock.paused():
        watch.now += 10
        assert (clock.seconds, clock.wall_seconds) == (3, 13)
    watch.now += 2
    assert (clock.seconds, clock.wall_seconds) == (5, 15)
    with clock.paused():
        watch.now += 1
    assert (clock.seconds, clock.wall_seconds) == (5, 16)


def test_an_error_ends_a_pause(watch: Watch) -> None:
    clock = Clock()
    clock.start()
    with pytest.raises(ZeroDivisionError), clock.paused():
        watch.now += 10
        raise ZeroDivisionError
    watch.now += 1
    assert (clock.seconds, clock.wall_seconds) == (1, 11)


def test_goes_on_where_an_earlier_session_stopped(watch: Watch) -> None:
    clock = Clock(seconds=100, wall_seconds=130)
    assert (clock.seconds, clock.wall_seconds) == (100, 130)
    clock.start()
    watch.now += 4
    assert (clock.seconds, clock.wall_seconds) == (104, 134)


def spent(seconds: float = 0.0, tokens: int = 0, epochs: float = 0.0) -> dict[str, float]:
    return {"seconds": seconds, "tokens": tokens, "epochs": epochs}


@pytest.mark.parametrize(
    ("limits", "done", "progress", "reason"),
    [
        ({}, spent(DEFAULT_SECONDS / 4), 0.25, "stopped"),
        ({}, spent(DEFAULT_SECONDS), 1.0, "seconds spent"),
        ({"seconds": 10}, spent(seconds=5, tokens=10**9), 0.5, "stopped"),
        ({"tokens": 100}, spent(10**9, 99, 10**9), 0.99, "stopped"),
        ({"tokens": 100}, spent(tokens=120), 1.2, "tokens spent"),
        ({"epochs": 2}, spent(epochs=2.0), 1.0, "epochs spent"),
        ({"tokens": 100, "seconds": 10}, spent(5, 90), 0.9, "stopped"),
        ({"tokens": 100, "epochs": 4}, spent(tokens=50, epochs=4.0), 1.0, "epochs spent"),
    ],
)
def test_the_first_limit_reached_ends_a_run(
    limits: dict[str, int], done: dict[str, int], progress: float, reason: str
) -> None:
    budget = Budget(RunSettings(**limits))  # type: ignore[arg-type]
    assert budget.progress(**done) == pytest.approx(progress)
    assert budget.reason(**done) == reason


def test_a_budget_is_timed_where_the_clock_can_end_it() -> None:
    assert Budget(RunSettings()).timed
    assert Budget(RunSettings(seconds=3, tokens=5)).timed
    assert not Budget(RunSettings(tokens=5)).timed
    assert not Budget(RunSettings(epochs=5)).timed

"""The schedules at points where their values are known, and a plateau that resumes."""

from __future__ import annotations

import json
import math

import pytest

from thinwire.errors import UserError
from thinwire.optim import OptimConfig, Schedule


def test_constant_is_one() -> None:
    schedule = Schedule(OptimConfig(schedule="constant", warmup_steps=0))
    assert {schedule.factor(step, step / 10) for step in range(11)} == {1.0}


@pytest.mark.parametrize("kind", ["constant", "cosine", "plateau"])
def test_warmup_rises_to_one_under_any_schedule(kind: str) -> None:
    schedule = Schedule(OptimConfig(schedule=kind, warmup_steps=4))  # type: ignore[arg-type]
    assert [schedule.factor(step, 0.0) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_cosine_at_known_points() -> None:
    config = OptimConfig(schedule="cosine", warmup_steps=0, final_lr_fraction=0.2)
    schedule = Schedule(config)
    points = {0.0: 1.0, 1 / 3: 0.2 + 0.8 * 0.75, 0.5: 0.6, 1.0: 0.2, 1.5: 0.2, -1.0: 1.0}
    for progress, factor in points.items():
        assert schedule.factor(1000, progress) == pytest.approx(factor)


def test_warmup_counts_the_steps_of_all_workers() -> None:
    schedule = Schedule(OptimConfig(schedule="constant", warmup_steps=2), round_steps=4)
    assert [schedule.factor(step, 0.0) for step in (0, 3, 7, 20)] == [1 / 8, 4 / 8, 1.0, 1.0]


def plateau(patience: int = 1) -> Schedule:
    return Schedule(
        OptimConfig(
            schedule="plateau",
            warmup_steps=0,
            plateau_factor=0.5,
            plateau_patience=patience,
            final_lr_fraction=0.2,
        )
    )


def factors(schedule: Schedule, perplexities: list[float]) -> list[float]:
    seen = []
    for perplexity in perplexities:
        schedule.observe(perplexity)
        seen.append(schedule.factor(1000, 0.5))
    return seen


def test_plateau_cuts_when_patience_is_over() -> None:
    assert factors(plateau(), [90, 91, 80, 80, 81, 82, 83, 70]) == [
        1,
        1,
        1,
        1,
        0.5,
        0.5,
        0.25,
        0.25,
    ]
    assert factors(plateau(patience=0), [90, 91, 80, 81, 82]) == [1, 0.5, 0.5, 0.25, 0.2]


def test_a_perplexity_that_is_not_a_number_is_no_best() -> None:
    assert factors(plateau(patience=0), [math.nan, 90, math.nan, 89]) == [0.5, 0.5, 0.25, 0.25]


def test_plateau_resumes_through_json() -> None:
    history = [90.0, 91.0, 80.0, 80.5, 81.0, 82.0, 83.0, 84.0, 70.0, 71.0, 72.0]
    straight = factors(plateau(), history)
    for cut in range(len(history)):
        first, second = plateau(), plateau()
        before = factors(first, history[:cut])
        second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
        assert before + factors(second, history[cut:]) == straight


def test_a_state_that_lacks_something_is_refused() -> None:
    with pytest.raises(UserError, match="lacks num_worse, plateau_factor"):
        plateau().load_state_dict({"best_perplexity": 1.0})

"""What a token teaches, and what follows from it for the choice of settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from thinwire.config import RunConfig
from thinwire.plan.forecast import Forecast, Link
from thinwire.plan.learning import learning
from thinwire.plan.plan import Plan, _batches, _variations

FORECAST = Forecast(
    exchange="sync",
    codec="fp32",
    select="rows",
    workers=4,
    step_seconds=1.0,
    tokens_per_second=100.0,
    step_bytes=1.0,
    dense_share=0.1,
    hidden_share=1.0,
    memory_bytes=1.0,
    batch=64,
    local_steps=1,
    fragments=1,
    row_steps=1,
    overlap_steps=0,
    learning=1.0,
)


def test_one_batch_shared_out_teaches_as_one_worker_does() -> None:
    assert learning("sync", 4, 16) == 1.0
    assert learning("none", 1, 64) == 1.0
    assert learning("periodic", 4, 16, 4, 4) == 1.0


def test_larger_batches_and_more_local_steps_teach_less() -> None:
    assert learning("sync", 4, 64) == pytest.approx(0.25**0.27)
    assert learning("periodic", 4, 64, 4, 4) == pytest.approx(0.25**0.15)
    assert learning("periodic", 4, 16, 16, 16) == pytest.approx(0.25**0.08)
    assert learning("periodic", 4, 16, 4, 16) == pytest.approx(0.25**0.02)
    assert learning("periodic", 4, 8, 2, 2) == 1.0


def plan_of(*forecasts: Forecast) -> Plan:
    one = replace(FORECAST, exchange="none", workers=1, tokens_per_second=50.0)
    machine: Any = None
    return Plan(machine, Link(1e6), 1, 1, (one, forecasts[0]), forecasts[1:])


def test_the_best_is_the_one_that_learns_fastest() -> None:
    fast = replace(FORECAST, tokens_per_second=200.0, learning=0.4)
    slow = replace(FORECAST, exchange="periodic", tokens_per_second=150.0, learning=0.8)
    plan = plan_of(fast, slow)
    assert plan.best(4) is slow
    assert plan.worth(slow) == pytest.approx(150.0 * 0.8 / 50.0)
    assert plan.best(4, ("sync",)) is fast


def test_what_is_nearly_as_good_comes_first_in_the_order_of_the_plan() -> None:
    first = replace(FORECAST, tokens_per_second=100.0)
    for rate, best in ((104.0, 0), (106.0, 1)):
        plan = plan_of(first, replace(FORECAST, codec="int4", tokens_per_second=rate))
        assert plan.best(4) is (first, plan.others[0])[best]


def test_only_defaults_are_varied() -> None:
    default = RunConfig()
    assert _batches(default) == [16, 32]
    varied = [
        (kind, config.data.batch, config.exchange.local_steps, config.exchange.row_steps)
        for kind, config in _variations(default, (64, 16, 32))
    ]
    assert ("periodic", 16, 4, 16) in varied
    assert ("sync", 16, 4, 0) in varied
    assert ("sync", 64, 4, 0) not in varied, "the table has it"
    assert ("periodic", 64, 4, 4) not in varied
    assert len(varied) == 2 + 11 + 2
    given = replace(
        default,
        data=replace(default.data, batch=48),
        exchange=replace(default.exchange, local_steps=9),
    )
    assert _batches(given) == []
    assert list(_variations(given, (48,))) == []


def test_flags_make_train_take_what_was_forecast() -> None:
    assert FORECAST.flags == {"exchange": "sync", "codec": "fp32", "data.batch": 64}
    periodic = replace(
        FORECAST, exchange="periodic", codec="int4", batch=16, local_steps=8, row_steps=32
    )
    assert periodic.flags == {
        "exchange": "periodic",
        "codec": "int4",
        "data.batch": 16,
        "exchange.local_steps": 8,
        "exchange.fragments": 1,
        "exchange.row_steps": 32,
        "exchange.overlap_steps": 0,
    }

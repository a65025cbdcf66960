from __future__ import annotations

from itertools import pairwise
from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinwire.report.figures import (
    COUNTS,
    TIMES,
    apart,
    count,
    duration,
    labels,
    linear_ticks,
    log_ticks,
    num_bytes,
    number,
    shortened,
    tick_label,
    unit_for,
)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (number(0.0123456), "0.01235"),
        (number(92.7), "92.70"),
        (number(118.94), "118.9"),
        (number(34892206), "34,892,206"),
        (count(950), "950"),
        (count(20_160), "20.2 k"),
        (count(9_100_000), "9.1 M"),
        (count(3e12), "3,000 G"),
        (num_bytes(0), "0 B"),
        (num_bytes(1_380_000_000), "1.38 GB"),
        (duration(0.4), "0.4 s"),
        (duration(59.97), "1 min"),
        (duration(750), "12 min 30 s"),
        (duration(7500), "2 h 05 min"),
        (tick_label(0.1 + 0.2), "0.3"),
        (tick_label(1000), "1,000"),
        (tick_label(150_000), "150 k"),
        (shortened("short"), "short"),
        (shortened("everything-in-fp32"), "everything-in-fp32"),
        (shortened("everything-in-fp32-by-async"), "everything-…32-by-async"),
        (unit_for(100, TIMES).name, "s"),
        (unit_for(600, TIMES).name, "min"),
        (unit_for(0, COUNTS).name, ""),
        (unit_for(9_100_000, COUNTS).name, "millions"),
    ],
)
def test_figures_read_well(shown: str, expected: str) -> None:
    assert shown == expected


SPANS = st.tuples(st.floats(1, 1e6), st.floats(1.001, 1e6))


@given(SPANS)
def test_linear_ticks_are_few_round_and_inside(span: tuple[float, float]) -> None:
    low, high = span[0], span[0] * span[1]
    ticks = linear_ticks(low, high)
    assert 2 <= len(ticks) <= 7
    slack = 1e-6 * (high - low)
    assert all(low - slack <= tick <= high + slack for tick in ticks)


@given(SPANS)
def test_log_ticks_are_few_and_inside(span: tuple[float, float]) -> None:
    low, high = span[0], span[0] * span[1]
    ticks = log_ticks(low, high)
    assert 2 <= len(ticks) <= 7
    slack = 1e-6 * (high - low)
    assert all(low - slack <= tick <= high + slack for tick in ticks)
    assert all(log(a) < log(b) for a, b in pairwise(ticks))


@given(st.lists(st.floats(0, 100), min_size=1, max_size=10))
def test_labels_are_moved_apart_in_their_order(positions: list[float]) -> None:
    moved = apart(positions, 10, 0, 100)
    order = sorted(range(len(positions)), key=positions.__getitem__)
    assert all(moved[b] - moved[a] >= 10 - 1e-9 for a, b in pairwise(order))
    assert all(0 <= y <= 100 + 1e-9 for y in moved)


def test_labels_that_are_apart_stay() -> None:
    assert apart([50, 10, 30], 10, 0, 100) == [50, 10, 30]


def test_labels_that_collide_part_evenly() -> None:
    assert apart([50, 50, 50], 10, 0, 100) == [40, 50, 60]


def test_long_names_that_differ_do_not_look_alike() -> None:
    names = [
        "lstm-wide-novels-seed1-lr-0.002-final",
        "lstm-wide-novels-seed2-lr-0.002-final",
        "lstm-wide-novels-seed2-lr-0.004-final",
        "short",
    ]
    found = labels(names)
    assert found == [
        "…s-seed1-lr-0.002-fin…",
        "…s-seed2-lr-0.002-fin…",
        "lstm-wide-n…0.004-final",
        "short",
    ]
    assert all(len(label) <= 23 for label in found)  # 22, and the dots in the middle


def test_names_that_differ_beyond_a_window_are_told_apart() -> None:
    names = [f"a{i}{'x' * 40}{j}{'y' * 40}" for i in "12" for j in "34"]
    found = labels(names)
    assert len(set(found)) == 4
    assert max(map(len, found)) <= 23


def test_the_same_name_is_the_same_label() -> None:
    assert labels(["run", "run"]) == ["run", "run"]

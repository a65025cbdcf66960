"""The messages: round trips, and sizes that are said beforehand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Size

from thinwire.parameter_server.assignments import Assignments
from thinwire.parameter_server.fields import packed_mask, unpacked_mask
from thinwire.parameter_server.message_sizes import pull_bytes, push_bytes, rows_bytes
from thinwire.parameter_server.protocol import (
    ABSENT,
    Kind,
    Position,
    Pull,
    Push,
    Report,
    Rows,
    Selection,
    WireAccount,
    read_message,
)
from thinwire.parameter_server.staleness import Staleness, StalenessCounts
from thinwire.wire.codecs import make_codec

NUM_ROWS = 300
CODECS = st.sampled_from(["fp32", "bf16", "int8", "int4"]).map(make_codec)
WHOLE = st.integers(1, 2**48)
REPORT = Report(2.5, 0.1, 28, Position(1, 2, 3, 1.25), WireAccount(0.5, 100.0, 200.0))


@st.composite
def selections(draw: Any) -> Selection:
    """Up to four groups of rows, and parameters that belong to them or are absent."""
    groups = draw(
        st.lists(st.none() | st.sets(st.integers(0, NUM_ROWS - 1), max_size=40), max_size=4)
    )
    ids = tuple(
        None if rows is None else torch.tensor(sorted(rows), dtype=torch.int64) for rows in groups
    )
    of = draw(st.lists(st.integers(ABSENT, len(ids) - 1), max_size=6))
    return Selection(tuple(of), ids)


def sizes(selection: Selection) -> list[tuple[int, int] | None]:
    return [
        None if ids is None else (len(ids), int(ids.diff().max()) if len(ids) > 1 else 0)
        for ids in selection.ids
    ]


def count(selection: Selection, group: int) -> int:
    ids = selection.ids[group]
    return NUM_ROWS if ids is None else len(ids)


def assert_same(found: Selection, selection: Selection) -> None:
    assert found.group_of == selection.group_of
    assert len(found.ids) == len(selection.ids)
    for mine, other in zip(found.ids, selection.ids, strict=True):
        assert (mine is None) == (other is None)
        assert mine is None or other is None or torch.equal(mine, other)


@given(selections(), WHOLE, WHOLE, WHOLE, st.booleans())
def test_pulls(
    selection: Selection, incarnation: int, number: int, held: int, everything: bool
) -> None:
    data = Pull(incarnation, number, held, everything, selection).pack()
    assert len(data) == pull_bytes(len(selection.group_of), sizes(selection))
    kind, frame = read_message(data)
    assert kind is Kind.PULL
    found = Pull.read(frame, [NUM_ROWS] * len(selection.group_of))
    assert (found.incarnation, found.number, found.held) == (incarnation, number, held)
    assert found.everything == everything
    assert_same(found.selection, selection)


@given(selections(), CODECS, st.integers(0, 5), st.booleans(), st.data())
def test_rows(selection: Selection, codec: Any, width: int, whole: bool, data: Any) -> None:
    masked, masks, sent = [], [], []
    for group in range(len(selection.ids)):
        n = count(selection, group)
        mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=bool)
        masks.append(packed_mask(mask))
        masked.append(n)
        sent.append(int(mask.sum()))
        assert torch.equal(unpacked_mask(masks[-1], n), mask)
    shapes = [Size((sent[group], width)) for _, group in selection.present()]
    values = tuple(codec.encode(torch.ones(shape)) for shape in shapes)
    packed = Rows(5, 6, 7, 0.25, whole, tuple(masks), values).pack()
    assert len(packed) == rows_bytes(codec, masked, shapes)
    _, frame = read_message(packed)
    found = Rows.read(frame, len(selection.ids))
    assert (found.incarnation, found.number, found.version, found.factor) == (5, 6, 7, 0.25)
    assert found.whole == whole
    assert [v.tolist() for v in found.values] == [v.tolist() for v in values]


@given(selections(), CODECS, st.integers(0, 5), st.booleans())
def test_pushes(selection: Selection, codec: Any, width: int, everything: bool) -> None:
    shapes = [Size((count(selection, group), width)) for _, group in selection.present()]
    values = tuple(codec.encode(torch.ones(shape)) for shape in shapes)
    packed = Push(5, 6, 7, everything, 0.25, REPORT, selection, values).pack()
    assert len(packed) == push_bytes(codec, len(selection.group_of), sizes(selection), shapes)
    _, frame = read_message(packed)
    found = Push.read(frame, [NUM_ROWS] * len(selection.group_of))
    assert (found.incarnation, found.number, found.pull, found.factor) == (5, 6, 7, 0.25)
    assert (found.everything, found.report) == (everything, REPORT)
    assert_same(found.selection, selection)
    assert [v.tolist() for v in found.values] == [v.tolist() for v in values]


@pytest.mark.parametrize(
    ("ids", "num_rows"),
    [([3, 2], 9), ([2, 2], 9), ([-1, 2], 9), ([0, 9], 9)],
    ids=["falling", "twice", "negative", "beyond"],
)
def test_rows_that_are_none(ids: list[int], num_rows: int) -> None:
    selection = Selection((0,), (torch.tensor(ids),))
    data = Pull(1, 1, 0, False, selection).pack()
    with pytest.raises(ValueError):
        Pull.read(read_message(data)[1], [num_rows])


def test_places_are_taken_over_with_their_position() -> None:
    places = Assignments(2, {})
    assert [places.take() for _ in range(4)] == [0, 1, 2, 3]
    places.move(1, Position(0, 5, 5, 0.5))
    places.free(1)
    places.free(3)
    assert (places.take(), places.position(1)) == (1, Position(0, 5, 5, 0.5))
    places.move(0, Position(1, 5, 15, 1.5))
    assert places.epochs == 1.0
    again = Assignments(2, places.state())
    assert [again.position(p) for p in (0, 1, 2)] == [
        Position(1, 5, 15, 1.5),
        Position(0, 5, 5, 0.5),
        Position(),
    ]


def test_the_distribution_of_staleness() -> None:
    staleness = StalenessCounts()
    assert staleness.summary() == {}
    for tau in (0, 0, 0, 1, 1, 2, 2, 3, 5, 10):
        staleness.add(Staleness(tau, 0.1 * tau))
    summary = staleness.summary()
    assert summary == {
        "mean": 2.4,
        "p50": 1,
        "p90": 5,
        "max": 10,
        "changed_rows": pytest.approx(0.24),
    }

"""The rows that either of two uses touches, each once."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from thinwire.touched import Touched

ids = st.none() | st.sets(st.integers(0, 9)).map(sorted)
parameters = st.dictionaries(st.sampled_from("abc"), ids)


def touched(rows: dict[str, list[int] | None]) -> Touched:
    return Touched(
        {n: None if i is None else torch.tensor(i, dtype=torch.int64) for n, i in rows.items()}
    )


@given(parameters, parameters)
def test_union(mine: dict[str, list[int] | None], other: dict[str, list[int] | None]) -> None:
    union = touched(mine).union(touched(other)).rows
    assert union.keys() == mine.keys() | other.keys()
    for name, found in union.items():
        uses = [rows[name] for rows in (mine, other) if name in rows]
        if None in uses:
            assert found is None  # every row
        else:
            assert found is not None and found.dtype == torch.int64
            assert found.tolist() == sorted({i for use in uses for i in use or ()})


def test_operands_are_left_alone() -> None:
    mine, other = touched({"a": [3, 1]}), touched({"a": [2]})
    mine.union(other)
    assert mine.rows.keys() == {"a"} and mine.rows["a"] is not None
    assert mine.rows["a"].tolist() == [3, 1]


def test_what_is_touched_alike_is_a_group() -> None:
    a, b = torch.tensor([1, 2]), torch.tensor([1, 2])
    rows = {"embedding": a, "weight": b, "bias": b, "other": None}
    apart = Touched(rows).groups()
    assert [names for names, _ in apart] == [("embedding",), ("weight",), ("bias",), ("other",)]
    # By what is said, and not by which tensor it is.
    together = Touched({n: None if i is None else i.clone() for n, i in rows.items()})
    groups = replace(together, alike=(("weight", "bias"),)).groups()
    assert [names for names, _ in groups] == [("embedding",), ("weight", "bias"), ("other",)]
    assert groups[1][1] is not None and groups[1][1].tolist() == [1, 2] and groups[2][1] is None

"""The rows that either of two uses touches, each once."""

from __future__ import annotations

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

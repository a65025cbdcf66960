from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinwire.data.splits import TEST, TRAIN, VALID, Division
from thinwire.errors import UserError


def labels(division: Division, num_lines: int) -> np.ndarray:
    return division.split_of(np.arange(num_lines))


@given(
    num_lines=st.integers(200, 5000),
    valid=st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.3, 0.48]),
    test=st.sampled_from([0.0, 0.001, 0.02, 0.5]),
)
def test_fractions_are_kept_to_a_line(num_lines: int, valid: float, test: float) -> None:
    found = labels(Division.by_fraction(num_lines, valid=valid, test=test), num_lines)
    for split, fraction in ((VALID, valid), (TEST, test)):
        expected = max(round(fraction * num_lines), 1) if fraction else 0
        assert (found == split).sum() == expected
    assert (found == TRAIN).sum() >= 1


def test_held_out_lines_are_spread_in_runs() -> None:
    found = labels(Division.by_fraction(10_000, valid=0.01, test=0.01), 10_000)
    for split in (VALID, TEST):
        begins = np.flatnonzero(np.diff(found == split, prepend=False))[::2]
        assert len(begins) == 10  # 100 lines in 10 runs
        assert set(np.diff(begins)) == {1000}


@pytest.mark.parametrize("split", [TRAIN, VALID, TEST])
def test_a_whole_text_goes_to_one_split(split: int) -> None:
    assert (labels(Division.whole(7, split), 7) == split).all()


def test_refuses_a_text_of_too_few_lines() -> None:
    with pytest.raises(UserError, match="2 lines, too few to hold out 1 for validation and 1"):
        Division.by_fraction(2, valid=0.01, test=0.01)

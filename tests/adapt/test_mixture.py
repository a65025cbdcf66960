"""The mixture holds all of the new text and as much old text as was asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinwire.adapt.mixture import MOST_PASSES, mix, num_passes

EOS = 0


def lines(num_lines: int, length: int, first: int) -> np.ndarray:
    line = [*range(first, first + length), EOS]
    return np.array(line * num_lines, dtype=np.uint16)


@given(
    st.integers(1, 300), st.integers(1, 300), st.sampled_from([0.5, 1.0, 2.0]), st.integers(0, 9)
)
def test_shares(num_new: int, num_old: int, ratio: float, seed: int) -> None:
    new, old = lines(num_new, 4, 100), lines(num_old, 6, 500)
    mixed = mix(new, old, ratio, eos_id=EOS, seed=seed)
    passes = num_passes(new, old, ratio)
    # A line is whole or not there: 4 and 6 words and their end.
    is_new, is_old = (mixed >= 100) & (mixed < 500), mixed >= 500
    assert is_new.sum() == 4 * num_new * passes
    assert is_old.sum() % 6 == 0
    taken = is_old.sum() // 6 * 7
    assert abs(taken - ratio * passes * len(new)) <= 7


def test_without_old_text_it_is_the_new_text() -> None:
    new = lines(50, 4, 100)
    assert mix(new, np.empty(0, np.uint8), 1.0, eos_id=EOS, seed=1).tolist() == new.tolist()
    assert mix(new, lines(9, 6, 500), 0.0, eos_id=EOS, seed=1).tolist() == new.tolist()


def test_passes_end_with_the_old_text() -> None:
    new, old = lines(10, 4, 1), lines(100, 4, 9)
    assert num_passes(new, old, 2.0) == 5
    assert num_passes(new, old, 0.1) == MOST_PASSES
    assert num_passes(new, old[:5], 1.0) == 1


def test_seed_decides() -> None:
    new, old = lines(40, 4, 100), np.arange(1, 3000, dtype=np.uint16)
    old[::9] = EOS
    first, again, other = (mix(new, old, 1.0, eos_id=EOS, seed=s).tolist() for s in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("old", [[5, 6, 7], [5, EOS], [EOS]])
def test_odd_old_texts(old: list[int]) -> None:
    new = lines(3, 4, 100)
    mixed = mix(new, np.array(old, dtype=np.uint16), 1.0, eos_id=EOS, seed=1)
    assert len(mixed) >= 2 * len(new)

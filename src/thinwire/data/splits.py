"""Decides which lines of a text belong to which split.

To hold out a fraction, the text is cut into equal parts, and the last lines of each part go to
validation and test. So the held-out lines are spread evenly over the text, but still come in blocks
of adjacent lines, which a model that carries its state over lines needs. n held-out lines come in
about sqrt(n) blocks of sqrt(n) lines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from thinwire.errors import UserError

TRAIN, VALID, TEST = range(3)


class Division:
    """Maps the number of a line to its split."""

    def __init__(self, lines_S: Sequence[int]) -> None:
        """`lines_S`: the number of lines of each of the three splits."""
        num_parts = math.isqrt(min(filter(None, lines_S)))
        # Every part has the same number of lines of a split, up to one line.
        shares_SP = np.outer(lines_S, np.arange(num_parts + 1)) // num_parts
        self._ends = np.cumsum(np.diff(shares_SP, axis=1).T.ravel())

    @classmethod
    def whole(cls, num_lines: int, split: int) -> Division:
        """Assign every line to one split."""
        return cls([num_lines if split == other else 0 for other in (TRAIN, VALID, TEST)])

    @classmethod
    def by_fraction(cls, num_lines: int, *, valid: float = 0.0, test: float = 0.0) -> Division:
        """Assign these fractions to validation and test; at least one line, unless it is 0."""
        num_valid, num_test = (
            max(round(fraction * num_lines), 1) if fraction else 0 for fraction in (valid, test)
        )
        num_train = num_lines - num_valid - num_test
        if num_train < 1:
            raise UserError(
                f"the text has {num_lines} lines, too few to hold out {num_valid} for validation "
                f"and {num_test} for test: give files with --valid and --test, or 0 for none"
            )
        return cls([num_train, num_valid, num_test])

    def split_of(self, lines: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """TRAIN, VALID or TEST for each line number, counted from 0."""
        return np.searchsorted(self._ends, lines, side="right") % 3

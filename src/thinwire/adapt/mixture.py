"""The mixture: pieces of new text, each followed by a random piece of old text.

This is continued training on resampled data (Ter-Sarkisov et al. 2014): old text is rehearsed while
the model learns new text. Pieces are small, so that every step sees both, and are cut at line ends.
Each pass over the new text has different old text.

N tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from thinwire.runs.evaluation import Ids
from thinwire.seeds import numpy_generator

PIECE_TOKENS = 512
MOST_PASSES = 10


def num_passes(new: Ids, old: Ids, ratio: float) -> int:
    """The number of passes over the new text: as many as there is different old text for."""
    if ratio == 0 or not len(old):
        return 1
    return int(min(MOST_PASSES, max(1, len(old) // (ratio * len(new)))))


def mix(new: Ids, old: Ids, ratio: float, *, eos_id: int, seed: int) -> Ids:
    """The new text, `num_passes` times, with `ratio` tokens of old text for each of its tokens."""
    passes = num_passes(new, old, ratio)
    generator = numpy_generator(seed, "adapt", "mixture")
    parts: list[Ids] = []
    owed = 0.0
    for _ in range(passes):
        for piece in _pieces(new, eos_id):
            parts.append(piece)
            owed += ratio * len(piece)
            while len(old) and owed >= 1:
                drawn = _draw(old, round(owed), int(generator.integers(len(old))), eos_id)
                parts.append(drawn)
                owed -= len(drawn)
    return np.concatenate(parts)


def _pieces(ids: Ids, eos_id: int) -> Iterator[Ids]:
    """Yield pieces of about `PIECE_TOKENS` tokens each, cut at line ends."""
    ends = np.flatnonzero(ids == eos_id) + 1
    wanted = np.arange(PIECE_TOKENS, len(ids), PIECE_TOKENS)
    found = np.searchsorted(ends, wanted)
    cuts = sorted({0, len(ids), *ends[found[found < len(ends)]].tolist()})
    for first, last in pairwise(cuts):
        yield ids[first:last]


def _draw(ids: Ids, size: int, near: int, eos_id: int) -> Ids:
    """Whole lines of about `size` tokens from the first line that begins at `near` or later."""
    window = ids[near : near + size + PIECE_TOKENS]
    ends = np.flatnonzero(window == eos_id) + 1
    if not len(ends) or ends[0] == len(window):  # at the end of the text, or amid a long line
        window = ids[: size + PIECE_TOKENS]
        ends = np.concatenate(([0], np.flatnonzero(window == eos_id) + 1))
    first = ends[0]
    later = ends[ends >= first + size]
    last = later[0] if len(later) else len(window)
    return np.array(window[first:last])

"""Word errors: the least number of words to insert, delete or replace (Levenshtein 1966).

All hypotheses of an utterance are compared with its reference side by side: a row of the table
follows from the one before it at once, for a run of insertions costs one each, which a running
minimum finds.

H hypotheses, L words of the longest of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]


def word_errors(reference: Sequence[str], hypotheses: Sequence[Sequence[str]]) -> Counts:
    """The errors of each hypothesis, `[H]`."""
    ids: dict[str, int] = {}
    reference_ids = [ids.setdefault(word, len(ids)) for word in reference]
    lengths_H = np.array([len(words) for words in hypotheses], dtype=np.int64)
    words_HL = np.full((len(hypotheses), int(lengths_H.max(initial=0))), -1, dtype=np.int64)
    for row, words in enumerate(hypotheses):
        words_HL[row, : len(words)] = [ids.get(word, -2) for word in words]
    place_L1 = np.arange(words_HL.shape[1] + 1)
    cost_HL1 = np.broadcast_to(place_L1, (len(hypotheses), len(place_L1))).copy()
    for id in reference_ids:
        replaced_HL = cost_HL1[:, :-1] + (words_HL != id)
        cost_HL1 = cost_HL1 + 1
        cost_HL1[:, 1:] = np.minimum(cost_HL1[:, 1:], replaced_HL)
        cost_HL1 = np.minimum.accumulate(cost_HL1 - place_L1, axis=1) + place_L1
    errors_H: Counts = cost_HL1[np.arange(len(hypotheses)), lengths_H]
    return errors_H

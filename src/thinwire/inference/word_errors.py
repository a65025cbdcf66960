"""Word errors: the smallest number of words to insert, delete or replace (Levenshtein 1966).

All hypotheses of an utterance are compared with its reference at once. Each row of the dynamic
programming table is computed from the row before it without a loop over its columns: insertions
cost 1 each, so a running minimum of (cost - column) finds the best start of a run of insertions.

H hypotheses, L words of the longest hypothesis, L1 = L + 1 columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]


def word_errors(reference: Sequence[str], hypotheses: Sequence[Sequence[str]]) -> Counts:
    """The number of word errors of each hypothesis, `[H]`."""
    ids: dict[str, int] = {}
    reference_ids = [ids.setdefault(word, len(ids)) for word in reference]
    lengths_H = np.array([len(words) for words in hypotheses], dtype=np.int64)
    words_HL = np.full((len(hypotheses), int(lengths_H.max(initial=0))), -1, dtype=np.int64)
    for row, words in enumerate(hypotheses):
        words_HL[row, : len(words)] = [ids.get(word, -2) for word in words]
    column_L1 = np.arange(words_HL.shape[1] + 1)
    cost_HL1 = np.broadcast_to(column_L1, (len(hypotheses), len(column_L1))).copy()
    for id in reference_ids:
        replaced_HL = cost_HL1[:, :-1] + (words_HL != id)
        cost_HL1 = cost_HL1 + 1
        cost_HL1[:, 1:] = np.minimum(cost_HL1[:, 1:], replaced_HL)
        cost_HL1 = np.minimum.accumulate(cost_HL1 - column_L1, axis=1) + column_L1
    errors_H: Counts = cost_HL1[np.arange(len(hypotheses)), lengths_H]
    return errors_H

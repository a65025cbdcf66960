"""The most probable next words, exact, and the probabilities of given words.

The distribution over the whole vocabulary is computed for a few prompts at a time, and only the
requested words are kept. So a matrix of all prompts by all words is never in memory.

N prompts, n prompts at a time, V vocabulary, D width, K words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thinwire.language_model import LanguageModel

# The largest number of log-probabilities that are in memory at a time (64 MB).
CHUNK_LOGPROBS = 2**24


@dataclass(frozen=True)
class Candidate:
    """A word that may come next.

    Attributes:
        word: the word as it is written in the vocabulary.
        logprob: natural logarithm of its probability as the next word.
        id: its token id.
    """

    word: str
    logprob: float
    id: int


def num_rows_at_a_time(vocab_size: int) -> int:
    """The number of prompts whose distributions are computed at a time."""
    return max(1, CHUNK_LOGPROBS // vocab_size)


@torch.no_grad()
def most_probable(
    model: LanguageModel, hidden_ND: Tensor, k: int, without: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    """ln p and ids of the k most probable words, `[N, k]` each, the most probable first.

    If two words are equally probable, the one with the smaller id comes first: the result is that
    of a stable sort of the whole distribution.

    Args:
        model: a trained model.
        hidden_ND: hidden states.
        k: number of words; fewer are returned if the vocabulary without `without` is smaller.
        without: ids to leave out.
    """
    logprob, ids = [], []
    k = min(k, model.vocab_size - len(set(without)))
    for logprob_nV in _distributions(model, hidden_ND):
        if without:
            logprob_nV[:, list(without)] = -torch.inf
        logprob_nK, ids_nK = _stable_top(logprob_nV, k)
        logprob.append(logprob_nK)
        ids.append(ids_nK)
    return torch.cat(logprob), torch.cat(ids)


@torch.no_grad()
def logprobs_of(model: LanguageModel, hidden_ND: Tensor, ids_K: Tensor) -> Tensor:
    """ln p of given words after each hidden state, exact, `[N, K]`."""
    return torch.cat([rows_nV[:, ids_K] for rows_nV in _distributions(model, hidden_ND)])


def _distributions(model: LanguageModel, hidden_ND: Tensor) -> Iterator[Tensor]:
    for hidden_nD in hidden_ND.split(num_rows_at_a_time(model.vocab_size)):
        yield model.output.distribution(hidden_nD)


def _stable_top(values_nV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first k values and indices of a stable sort in descending order."""
    top_nK, ids_nK = values_nV.topk(min(k + 1, values_nV.shape[1]), dim=1)
    # topk may take any of several words that are as probable as the k-th.
    if top_nK.shape[1] > k:
        for row in (top_nK[:, k] == top_nK[:, k - 1]).nonzero()[:, 0].tolist():
            sorted_V, order_V = values_nV[row].sort(descending=True, stable=True)
            top_nK[row, :k], ids_nK[row, :k] = sorted_V[:k], order_V[:k]
    top_nK, ids_nK = top_nK[:, :k], ids_nK[:, :k]
    by_id_nK = ids_nK.argsort(dim=1)
    top_nK, ids_nK = top_nK.gather(1, by_id_nK), ids_nK.gather(1, by_id_nK)
    top_nK, order_nK = top_nK.sort(dim=1, descending=True, stable=True)
    return top_nK, ids_nK.gather(1, order_nK)

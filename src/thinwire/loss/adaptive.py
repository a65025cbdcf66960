"""PyTorch's adaptive softmax: frequent words in a head, rare words in narrower clusters.

Grave et al. 2016 (arXiv 1609.04309). A step touches the whole head, and the whole of each cluster
that contains a target, so the parameters are dense blocks. A cluster that contains no target of a
step has no gradient and is not updated.

PyTorch's module needs ids in the order of falling frequency, which a given tokenizer need not have.
So this layer replaces each word's id by its rank among the counts.

N positions, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from thinwire.errors import UserError
from thinwire.loss.contract import LossPlan
from thinwire.loss.output import Output
from thinwire.loss.precision import full_precision

# The ends of the head and of the clusters, as fractions of the vocabulary. They are common choices
# for vocabularies between 30 k and 270 k words.
CUTS = (0.03, 0.15, 0.5)
# The factor by which each cluster is narrower than the previous one: PyTorch's default.
NARROWING = 4


class AdaptiveOutput(Output):
    """An output layer that is PyTorch's `AdaptiveLogSoftmaxWithLoss` over words by frequency.

    Args:
        counts: occurrences of each word in the training text, `[V]`. Among equally frequent words,
            the one with the smaller id counts as the more frequent.
        width: width of the hidden states.

    Raises:
        UserError: the vocabulary is too small for clusters, or the width is too small.
    """

    rank_V: Tensor
    """The number of words that are more frequent than each word. It is computed from the counts, so
    it is not saved."""

    def __init__(self, counts: Tensor, width: int) -> None:
        super().__init__()
        vocab_size = len(counts)
        order_V = counts.argsort(descending=True, stable=True)
        self.register_buffer("rank_V", order_V.argsort(), persistent=False)
        cutoffs = sorted({max(1, round(vocab_size * cut)) for cut in CUTS})
        if cutoffs[-1] >= vocab_size:
            raise UserError(
                f"the adaptive loss cuts the vocabulary in {len(CUTS) + 1}, "
                f"but this one has only {vocab_size} entries; use --loss.kind full"
            )
        least = NARROWING ** len(cutoffs)
        if width < least:
            raise UserError(
                f"the adaptive loss gives its rarest words 1/{least} of the model's width, so "
                f"model.width must be at least {least}, and is {width}"
            )
        self.softmax = nn.AdaptiveLogSoftmaxWithLoss(
            width, vocab_size, cutoffs, div_value=NARROWING
        )

    def plan(self, targets_N: Tensor, step: int) -> LossPlan:
        """No rows: all parameters are dense blocks."""
        return LossPlan(ids_R=None, target_rows_N=targets_N)

    def tables(self) -> Mapping[str, nn.Parameter]:
        """No tables: all parameters are dense blocks."""
        return {}

    def loss(self, hidden_ND: Tensor, plan: LossPlan, rows: Mapping[str, Tensor]) -> Tensor:
        """The summed exact cross-entropy in nats."""
        return -self._logprob(hidden_ND, plan.target_rows_N).sum()

    @torch.no_grad()
    def logprob(self, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        """Exact, computed from the head and the target's cluster."""
        return self._logprob(hidden_ND, targets_N)

    @torch.no_grad()
    def distribution(self, hidden_ND: Tensor) -> Tensor:
        """Exact, computed from the head and every cluster."""
        with full_precision(hidden_ND, self.softmax.head.weight) as (h_ND, _):
            by_rank_NV: Tensor = self.softmax.log_prob(h_ND)
        return by_rank_NV.index_select(1, self.rank_V)

    def _logprob(self, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        with full_precision(hidden_ND, self.softmax.head.weight) as (h_ND, _):
            value: Tensor = self.softmax(h_ND, self.rank_V[targets_N]).output
        return value

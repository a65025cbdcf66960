"""The adaptive softmax, PyTorch's: frequent words in a head, rare ones in ever narrower clusters.

Grave et al. 2016 (arXiv 1609.04309). It touches its head and each visited cluster whole, so its
parameters are dense blocks: a cluster that no target of a step falls into gets no gradient and no
update.

PyTorch's wants ids by falling frequency. Those of a given tokenizer need not be, so a word goes in
and out by its rank among the counts, and its id does not matter.

N positions, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from thinwire.errors import UserError
from thinwire.loss.contract import Plan
from thinwire.loss.output import Output
from thinwire.loss.precision import full_precision

# Where the head and the clusters end, as shares of the vocabulary: the cuts that PyTorch's users
# commonly choose for vocabularies between 30 k and 270 k words.
CUTS = (0.03, 0.15, 0.5)
# How much narrower each cluster is than the one before it: PyTorch's own default.
NARROWING = 4


class AdaptiveOutput(Output):
    """An output layer that is PyTorch's `AdaptiveLogSoftmaxWithLoss` over words by frequency.

    Args:
        counts: occurrences of each word in the training text, `[V]`; of equally frequent words the
            one with the smaller id counts as the more frequent.
        width: of the hidden states.

    Raises:
        UserError: a vocabulary too small to be cut, or a width too small to be narrowed.
    """

    rank_V: Tensor
    """How many words are more frequent than each; follows from the counts, so it is not saved."""

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

    def plan(self, targets_N: Tensor, step: int) -> Plan:
        """No rows: the clusters are blocks."""
        return Plan(ids_R=None, target_rows_N=targets_N)

    def tables(self) -> Mapping[str, nn.Parameter]:
        """None."""
        return {}

    def loss(self, hidden_ND: Tensor, plan: Plan, rows: Mapping[str, Tensor]) -> Tensor:
        """The summed exact cross-entropy in nats."""
        return -self._logprob(hidden_ND, plan.target_rows_N).sum()

    @torch.no_grad()
    def logprob(self, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        """Exact, through the head and the target's cluster."""
        return self._logprob(hidden_ND, targets_N)

    @torch.no_grad()
    def distribution(self, hidden_ND: Tensor) -> Tensor:
        """Exact, through every cluster."""
        with full_precision(hidden_ND, self.softmax.head.weight) as (h_ND, _):
            by_rank_NV: Tensor = self.softmax.log_prob(h_ND)
        return by_rank_NV.index_select(1, self.rank_V)

    def _logprob(self, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        with full_precision(hidden_ND, self.softmax.head.weight) as (h_ND, _):
            value: Tensor = self.softmax(h_ND, self.rank_V[targets_N]).output
        return value

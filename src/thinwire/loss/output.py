"""Output layers, which turn hidden states into a distribution over the vocabulary.

In training, an output layer uses only the rows that a step touches, as its plan says. In
evaluation, it is always exact.

N positions, V vocabulary, D width, R rows touched.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from thinwire.loss.contract import Criterion, LossPlan
from thinwire.loss.full import exact_logprob
from thinwire.loss.precision import full_precision
from thinwire.matmul import matmul_nt


class Output(nn.Module, ABC):
    """The contract of output layers."""

    @abstractmethod
    def plan(self, targets_N: Tensor, step: int) -> LossPlan:
        """The rows that a step with these targets touches."""

    @abstractmethod
    def tables(self) -> Mapping[str, nn.Parameter]:
        """The parameters of which a step touches only some rows; all others are dense blocks."""

    @abstractmethod
    def loss(self, hidden_ND: Tensor, plan: LossPlan, rows: Mapping[str, Tensor]) -> Tensor:
        """The training loss from the planned rows of each table, summed over positions, in nats."""

    @abstractmethod
    def logprob(self, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        """ln p(target), exact, `[N]`."""

    @abstractmethod
    def distribution(self, hidden_ND: Tensor) -> Tensor:
        """ln p of every word, exact, `[N, V]`."""


class SoftmaxOutput(Output):
    """One row and one bias per word; trained by any `Criterion`, evaluated by the full softmax.

    Args:
        weight_VD: the rows; with a tied output, the parameter of the embedding.
        counts: occurrences of each word `[V]`. The biases start at the log of each word's share, so
            an untrained model has the perplexity of a unigram model.
        criterion: the training loss.
    """

    def __init__(self, weight_VD: nn.Parameter, counts: Tensor, criterion: Criterion) -> None:
        super().__init__()
        smoothed_V = counts.to(torch.float64).clamp(min=1.0)
        self.weight = weight_VD
        self.bias = nn.Parameter((smoothed_V / smoothed_V.sum()).log().to(torch.float32))
        self.criterion = criterion

    def plan(self, targets_N: Tensor, step: int) -> LossPlan:
        """The criterion's plan."""
        return self.criterion.plan(targets_N, step)

    def tables(self) -> Mapping[str, nn.Parameter]:
        """`weight` [V, D] and `bias` [V]."""
        return {"weight": self.weight, "bias": self.bias}

    def loss(self, hidden_ND: Tensor, plan: LossPlan, rows: Mapping[str, Tensor]) -> Tensor:
        """The criterion's loss."""
        return self.criterion.loss(hidden_ND, plan, rows["weight"], rows["bias"])

    def logprob(self, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        """Computed by the full softmax, in tiles."""
        return exact_logprob(hidden_ND, self.weight, self.bias, targets_N)

    @torch.no_grad()
    def distribution(self, hidden_ND: Tensor) -> Tensor:
        """Computed by the full softmax."""
        with full_precision(hidden_ND, self.weight, self.bias) as (h_ND, w_VD, b_V):
            return torch.log_softmax(matmul_nt(h_ND, w_VD, b_V), dim=1)

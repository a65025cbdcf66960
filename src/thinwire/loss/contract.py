"""The contract of losses: a plan of the rows from the targets, then a value from these rows.

N positions, V vocabulary, D width, S sampled words, R output rows touched.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LossPlan:
    """The output rows that the loss of one step needs, known before any computation.

    Attributes:
        ids_R: distinct rows of the output table: first the sample, sorted, then the targets that
            are not in the sample, sorted; None: every row.
        target_rows_N: the index of each position's target in `ids_R`, int64.
        log_inclusion_S: for the first S rows, the log-probability of being drawn; None: the loss
            draws no sample.
    """

    ids_R: Tensor | None
    target_rows_N: Tensor
    log_inclusion_S: Tensor | None = None


class Criterion(ABC):
    """A loss over the rows of a softmax output layer."""

    @abstractmethod
    def plan(self, targets_N: Tensor, step: int) -> LossPlan:
        """The rows that the loss of these targets touches at this step."""

    @abstractmethod
    def loss(self, hidden_ND: Tensor, plan: LossPlan, weight_RD: Tensor, bias_R: Tensor) -> Tensor:
        """The summed loss of all positions in nats, a differentiable scalar.

        `weight_RD` and `bias_R` are the planned rows, in the plan's order.
        """

"""What a loss is: a plan made from the targets alone, then a value from the planned rows.

N positions, V vocabulary, D width, S sampled words, R output rows touched.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Plan:
    """The output rows that one step's loss needs, known before the arithmetic.

    Attributes:
        ids_R: distinct rows of the output table: the sample first, sorted, then the targets outside
            it, sorted; None: every row.
        target_rows_N: where each position's target stands among them, int64.
        log_inclusion_S: for the first S rows, the log-probability of having been drawn; None where
            nothing is drawn.
    """

    ids_R: Tensor | None
    target_rows_N: Tensor
    log_inclusion_S: Tensor | None = None


class Criterion(ABC):
    """A loss over the rows of a softmax output layer."""

    @abstractmethod
    def plan(self, targets_N: Tensor, step: int) -> Plan:
        """The rows that the loss of these targets touches at this step."""

    @abstractmethod
    def loss(self, hidden_ND: Tensor, plan: Plan, weight_RD: Tensor, bias_R: Tensor) -> Tensor:
        """The summed loss of all positions in nats, a differentiable scalar.

        `weight_RD` and `bias_R` are the planned rows, in the plan's order.
        """

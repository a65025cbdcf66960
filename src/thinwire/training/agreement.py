"""What the workers of a run agree on after a step.

Each worker reports a `Status`. The numbers of all workers are summed, so all workers derive the
same `Agreement` from them. Only the first worker decides when to evaluate and to save.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from thinwire.exchange.contract import Traffic


class Status(NamedTuple):
    """The report of one worker, or the sum of all workers' reports.

    In the reports of all but the first worker, `progress`, `evaluate` and `save` are 0.
    """

    loss: float
    """This worker's part of the losses of the steps since its last report, summed, in nats per
    token."""
    stop: float
    """1 if this worker was asked to stop."""
    progress: float
    """The fraction of the budget that is spent. The first worker decides it."""
    evaluate: float
    """1 if an evaluation is due. The first worker decides it."""
    save: float
    """1 if a checkpoint is due. The first worker decides it."""
    traffic: Traffic

    def to_numbers(self) -> list[float]:
        """A flat list, to be summed over the workers."""
        return [self.loss, self.stop, self.progress, self.evaluate, self.save, *self.traffic]

    @classmethod
    def from_numbers(cls, numbers: Sequence[float]) -> Status:
        """The inverse of `to_numbers`."""
        loss, stop, progress, evaluate, save, *traffic = numbers
        return cls(loss, stop, progress, evaluate, save, Traffic(*traffic))


STATUS_NUMBERS = len(Status._fields) - 1 + len(Traffic._fields)


@dataclass(frozen=True)
class Agreement:
    """What all workers know after a step.

    Attributes:
        loss: the mean loss of the last `num_steps` steps, in nats per token.
        num_steps: the number of steps since the previous reports; 0: no reports were exchanged
            after this step.
        stop: whether the run stops.
        progress: the fraction of the budget that is spent.
        evaluate: whether an evaluation is due.
        save: whether a checkpoint is due.
    """

    loss: float = 0.0
    num_steps: int = 0
    stop: bool = False
    progress: float = 0.0
    evaluate: bool = False
    save: bool = False

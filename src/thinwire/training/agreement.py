"""What workers that hold the same model say after a step, and what all of them then know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from thinwire.exchange.contract import Traffic


class Statement(NamedTuple):
    """One worker's; the numbers of all workers are added up. What the first one decides is 0 in
    the others' statements."""

    loss: float
    """The losses of its steps since it last spoke, added up, in nats a token."""
    stop: float
    """1 if it was asked to stop."""
    progress: float
    """The part of the budget that is spent."""
    evaluate: float
    save: float
    traffic: Traffic

    def numbers(self) -> list[float]:
        """As numbers to be added up."""
        return [self.loss, self.stop, self.progress, self.evaluate, self.save, *self.traffic]

    @classmethod
    def read(cls, numbers: Sequence[float]) -> Statement:
        """The statement of such numbers."""
        loss, stop, progress, evaluate, save, *traffic = numbers
        return cls(loss, stop, progress, evaluate, save, Traffic(*traffic))


STATEMENT_NUMBERS = len(Statement._fields) - 1 + len(Traffic._fields)


@dataclass(frozen=True)
class Agreed:
    """What all workers know after a step: the mean loss of the latest steps (so many as they had
    not spoken of before), and what the first worker has decided."""

    loss: float = 0.0
    num_steps: int = 0
    stop: bool = False
    progress: float = 0.0
    evaluate: bool = False
    save: bool = False

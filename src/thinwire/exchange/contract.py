"""The contract of exchanges, which turn each worker's gradients into parameters they agree on.

R rows touched.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from thinwire.touched import Touched
from thinwire.transport.collective import Pending


class Traffic(NamedTuple):
    """The traffic of one worker since the start; the fields are those of `metrics.jsonl`."""

    bytes_sent: float = 0.0
    bytes_received: float = 0.0
    bytes_dense: float = 0.0
    """Bytes that an all-reduce of all parameters in fp32 would have sent."""
    exchange_seconds: float = 0.0
    """Seconds of waiting for the exchange."""
    wire_seconds: float = 0.0
    """Seconds in which any of this worker's messages was in transit."""

    def over_workers(self, num_workers: int) -> dict[str, float]:
        """For a sum over all workers: the bytes of all workers, and the mean seconds per worker."""
        return {
            "bytes_sent": round(self.bytes_sent),
            "bytes_received": round(self.bytes_received),
            "bytes_dense": round(self.bytes_dense),
            "exchange_seconds": self.exchange_seconds / num_workers,
            "wire_seconds": self.wire_seconds / num_workers,
        }


@dataclass(frozen=True)
class ExchangeState:
    """The state of an exchange that a checkpoint contains.

    Attributes:
        shared: tensors that are equal on all workers.
        own: tensors of this worker, with the same names and shapes on every worker. If the number
            of workers changes, their sum over all workers is kept.
    """

    shared: Mapping[str, Tensor] = field(default_factory=dict)
    own: Mapping[str, Tensor] = field(default_factory=dict)


class Exchange(ABC):
    """The contract of exchanges: a step calls `fetch`, then `push`, then `update`.

    `announce` may be called for the next step between `push` and `update`.
    """

    num_summed: int = 1
    """Number of workers whose gradients are summed for an update."""

    def communicates(self) -> bool:
        """Whether the workers exchange messages in the current step; called before `push`.

        In other steps no worker waits for another.
        """
        return True

    @abstractmethod
    def announce(self, touched: Touched) -> None:
        """Tell the other workers what the next step will touch, as soon as that is known."""

    @abstractmethod
    def fetch(self, touched: Touched) -> dict[str, Tensor]:
        """The touched rows of each table, `[R, ...]`, as leaves that accumulate gradients."""

    @abstractmethod
    def push(
        self, touched: Touched, rows: Mapping[str, Tensor], blocks: Mapping[str, Tensor]
    ) -> None:
        """Start to send gradients, and return at once.

        Args:
            touched: the argument of `fetch`.
            rows: the result of `fetch`, with gradients in `grad`.
            blocks: the dense parameters by name, with gradients in `grad`, which become None.
        """

    @abstractmethod
    def update(self) -> float:
        """Wait for the merged gradients, and apply them.

        Returns:
            The global norm of the gradient. If it is not finite, no parameter was changed.
        """

    @abstractmethod
    def total(self, numbers: Sequence[float]) -> Pending[list[float]]:
        """The sum of each number over all workers; every worker gets the same."""

    @abstractmethod
    def traffic(self) -> Traffic | None:
        """The traffic of this worker so far; None: there are no other workers."""

    @abstractmethod
    def flush(self) -> None:
        """Make all workers' parameters equal. Call it before parameters are evaluated or saved."""

    @abstractmethod
    def merge_optimizers(self) -> None:
        """Turn the optimisers' states into that of one worker with all the text; after `flush`.

        It is then equal on all workers, and any exchange with any number of workers can continue
        from it.
        """

    @abstractmethod
    def state(self) -> ExchangeState:
        """The state for `load_state`. Call `flush` and `merge_optimizers` before."""

    @abstractmethod
    def load_state(self, step: int, state: ExchangeState) -> None:
        """Continue at this step, from the loaded parameters and the result of `state`."""

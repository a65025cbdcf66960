"""What an exchange is: what turns one worker's gradients into parameters that all agree on.

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
    """What one worker has sent and waited for; the fields are those of `metrics.jsonl`."""

    bytes_sent: float = 0.0
    bytes_received: float = 0.0
    bytes_dense: float = 0.0
    """What it would have sent, had all parameters gone in fp32 by an all-reduce."""
    exchange_seconds: float = 0.0
    """In which it waited for the exchange."""
    wire_seconds: float = 0.0
    """In which something of its own was on the wire."""

    def of_all(self, num_workers: int) -> dict[str, float]:
        """Of the sum of all workers' traffic: bytes of all, seconds of the average worker."""
        return {
            "bytes_sent": round(self.bytes_sent),
            "bytes_received": round(self.bytes_received),
            "bytes_dense": round(self.bytes_dense),
            "exchange_seconds": self.exchange_seconds / num_workers,
            "wire_seconds": self.wire_seconds / num_workers,
        }


@dataclass(frozen=True)
class ExchangeState:
    """What an exchange needs to go on after a stop.

    Attributes:
        shared: tensors that are the same on every worker.
        own: tensors of this worker's own, of the same names and shapes on every worker; their sum
            over all workers is what must not be lost.
    """

    shared: Mapping[str, Tensor] = field(default_factory=dict)
    own: Mapping[str, Tensor] = field(default_factory=dict)


class Exchange(ABC):
    """The contract of exchanges: a step calls `fetch`, then `push`, then `update`.

    `announce` may be called for the next step between `push` and `update`.
    """

    num_added: int = 1
    """How many workers' gradients are added up before an update."""

    def meets(self) -> bool:
        """Whether the workers speak with one another in the step at hand; asked before `push`.

        In other steps nobody waits for anybody.
        """
        return True

    @abstractmethod
    def announce(self, touched: Touched) -> None:
        """Tell the others what the next step will touch, as soon as that is known."""

    @abstractmethod
    def fetch(self, touched: Touched) -> dict[str, Tensor]:
        """The touched rows of each table, `[R, ...]`, as leaves that collect gradients."""

    @abstractmethod
    def push(
        self, touched: Touched, rows: Mapping[str, Tensor], blocks: Mapping[str, Tensor]
    ) -> None:
        """Let gradients go; they travel while the worker does something else.

        Args:
            touched: what was fetched.
            rows: what `fetch` returned, with gradients in `grad`.
            blocks: the dense parameters, by name, with gradients in `grad`; afterwards without.
        """

    @abstractmethod
    def update(self) -> float:
        """Finish what `push` began: the merged gradients arrive and are applied.

        Returns:
            The global norm of the gradient that was applied. One that is not finite changes
            nothing.
        """

    @abstractmethod
    def total(self, numbers: Sequence[float]) -> Pending[list[float]]:
        """The sum of each number over all workers; every worker gets the same."""

    @abstractmethod
    def traffic(self) -> Traffic | None:
        """What this worker has sent so far; None: there is nobody to send to."""

    @abstractmethod
    def flush(self) -> None:
        """Make the parameters at hand those that all workers agree on, before they are read."""

    @abstractmethod
    def merge_optimizers(self) -> None:
        """After `flush`: make the optimisers' state that of one worker with all the text.

        It is then the same on all workers, and any exchange of any number of workers may go on from
        it. So does this one.
        """

    @abstractmethod
    def state(self) -> ExchangeState:
        """What `load_state` needs to go on; taken after `flush` and `merge_optimizers`."""

    @abstractmethod
    def load_state(self, step: int, state: ExchangeState) -> None:
        """Go on at this step from parameters that were loaded, and from what `state` gave."""

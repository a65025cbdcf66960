"""The contract of collectives: calls that every worker of a run makes, in the same order.

Every worker sends directly to every other worker, and not along a ring: each message waits until
the receiving worker is scheduled, and a ring of W workers has 2 (W - 1) such waits in a row.

Bytes are counted here. In an all-gather of n bytes each worker sends (W - 1) n bytes, plus
8 (W - 1) bytes for the length, which is sent first unless all workers know it. In an all-reduce
each worker sends the parts of the other workers, and its own result W - 1 times. Sent bytes are
counted when a call is made. Received bytes are counted when the result is waited for or, if their
number is known, when the call is made. So the counts depend only on the calls, not on time.

W workers.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from thinwire.wire.meter import Meter

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
LENGTH_BYTES = 8
Reduce = Callable[[Sequence[Tensor]], Tensor]
Lengths = Callable[[], Sequence[int]]


def all_gather_bytes(num_workers: int, num_bytes: int, *, lengths_known: bool = False) -> int:
    """The bytes that a worker sends when it gives `num_bytes` to each of the others."""
    return (num_workers - 1) * (num_bytes + (0 if lengths_known else LENGTH_BYTES))


class Pending(ABC, Generic[T_co]):
    """The result of a collective call that may still be running."""

    @abstractmethod
    def wait(self) -> T_co:
        """Wait for the result and return it.

        Raises:
            UserError: a worker has gone or did not answer in time. The message names it.
        """


class Done(Pending[T]):
    """A result that is known already."""

    def __init__(self, found: T) -> None:
        self._found = found

    def wait(self) -> T:
        """The result."""
        return self._found


class Collective(ABC):
    """All workers of a run, as seen by one of them.

    A call returns at once. Its arguments must not change until the result has been waited for.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.meter = Meter()
        self.busy_seconds = 0.0
        """Seconds in which any call was running, whether computation overlapped with it or not."""

    @abstractmethod
    def all_gather(self, message: Tensor, lengths: Lengths | None = None) -> Pending[list[Tensor]]:
        """Send bytes, uint8, to all workers; returns those of every worker, by rank.

        Args:
            message: this worker's bytes. Their number may differ between workers.
            lengths: returns the number of bytes of each worker, by rank, if every worker can
                compute them from the results of earlier calls. It is called after these calls,
                possibly in another thread.
        """

    @abstractmethod
    def all_reduce(
        self, parts: Sequence[Tensor], reduce: Reduce, sizes: Sequence[int]
    ) -> Pending[list[Tensor]]:
        """Worker r reduces the r-th part of all workers, and sends the result to all workers.

        Args:
            parts: one part, uint8, for each worker; the r-th has the same size on every worker.
            reduce: computes one message from all workers' parts for this worker, by rank. It may
                run in another thread, and must have no side effects.
            sizes: the size of the result of each worker's `reduce`.

        Returns:
            The results of all workers, by rank.
        """

    @abstractmethod
    def broadcast(self, tensor: Tensor) -> None:
        """Overwrite `tensor`, contiguous, with that of worker 0, and return when that is done."""

    @abstractmethod
    def name_of(self, rank: int) -> str:
        """The name of a worker, as messages to the user give it."""

    @abstractmethod
    def close(self) -> None:
        """Leave the group."""

    def all_gather_json(self, value: object) -> list[Any]:
        """The values of all workers, by rank. It waits, so it is for small and rare messages."""
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        return [json.loads(bytes(found.tolist())) for found in self.all_gather(own).wait()]

    def _count_given(self, message: Tensor, *, lengths_known: bool) -> None:
        sent = all_gather_bytes(self.size, message.nbytes, lengths_known=lengths_known)
        self.meter.count(sent=sent)

    def _count_gathered(self, messages: Sequence[Tensor], *, lengths_known: bool) -> None:
        others = [m.nbytes for rank, m in enumerate(messages) if rank != self.rank]
        first = 0 if lengths_known else LENGTH_BYTES * len(others)
        self.meter.count(received=first + sum(others))

    def _count_all_reduce(self, parts: Sequence[Tensor], sizes: Sequence[int]) -> None:
        others = [rank for rank in range(self.size) if rank != self.rank]
        sent = sum(parts[rank].nbytes for rank in others) + len(others) * sizes[self.rank]
        received = len(others) * parts[self.rank].nbytes + sum(sizes[rank] for rank in others)
        self.meter.count(sent=sent, received=received)

    def _count_broadcast(self, num_bytes: int) -> None:
        if self.rank == 0:
            self.meter.count(sent=(self.size - 1) * num_bytes)
        else:
            self.meter.count(received=num_bytes)

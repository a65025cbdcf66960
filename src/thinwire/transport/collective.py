"""The contract of collectives: calls that every worker of a run makes, in the same order.

Every worker sends to every other one at once, and never along a ring: a message waits until the
worker that it reaches is scheduled, and a ring of W workers has 2 (W - 1) such waits in a row.

Bytes are counted here, as they leave and arrive: an all-gather of n bytes sends (W - 1) n a worker,
and 8 (W - 1) more for the length, which goes first unless all know it; a merge what goes to the
others and W - 1 times what this worker has merged. What is sent counts when a call is made, what is
received when its result has been waited for or, where its size is known, with what is sent; so that
both follow from the calls alone.

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
Merge = Callable[[Sequence[Tensor]], Tensor]
Lengths = Callable[[], Sequence[int]]


def all_gather_bytes(num_workers: int, num_bytes: int, *, lengths_known: bool = False) -> int:
    """What a worker sends when it gives `num_bytes` to each of the others."""
    return (num_workers - 1) * (num_bytes + (0 if lengths_known else LENGTH_BYTES))


class Pending(ABC, Generic[T_co]):
    """What a collective will have found."""

    @abstractmethod
    def wait(self) -> T_co:
        """The result, once it is there.

        Raises:
            UserError: a worker has gone, or did not answer in time; it is named.
        """


class Done(Pending[T]):
    """What has been found already."""

    def __init__(self, found: T) -> None:
        self._found = found

    def wait(self) -> T:
        """What was found."""
        return self._found


class Collective(ABC):
    """All workers of a run, seen from one of them.

    A call returns at once; what it was given must not change until the result has been waited for.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.meter = Meter()
        self.busy_seconds = 0.0
        """How long calls were under way, hidden behind arithmetic or not."""

    @abstractmethod
    def all_gather(self, message: Tensor, lengths: Lengths | None = None) -> Pending[list[Tensor]]:
        """Every worker's bytes, uint8, by rank; their lengths may differ.

        Args:
            message: this worker's.
            lengths: the lengths, by rank, where every worker can tell them from what earlier calls
                have found; it is called after these, and may be in another thread.
        """

    @abstractmethod
    def merge(
        self, parts: Sequence[Tensor], merge: Merge, sizes: Sequence[int]
    ) -> Pending[list[Tensor]]:
        """Worker r merges what all workers give it; what it makes of that goes to all, by rank.

        Args:
            parts: bytes, uint8, for each worker; the r-th is as long on every worker.
            merge: makes one message of every worker's part for this one, given by rank. It may run
                in another thread, and has no effect but its result.
            sizes: how long the result of each worker's `merge` is.
        """

    @abstractmethod
    def broadcast(self, tensor: Tensor) -> None:
        """Overwrite `tensor`, contiguous, by that of worker 0, and return when that is done."""

    @abstractmethod
    def name_of(self, rank: int) -> str:
        """What to call a worker in a sentence."""

    @abstractmethod
    def close(self) -> None:
        """Leave the others."""

    def all_gather_json(self, value: object) -> list[Any]:
        """What every worker says, by rank; for little, and where all may wait."""
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        return [json.loads(bytes(said.tolist())) for said in self.all_gather(own).wait()]

    def _count_given(self, message: Tensor, *, lengths_known: bool) -> None:
        sent = all_gather_bytes(self.size, message.nbytes, lengths_known=lengths_known)
        self.meter.count(sent=sent)

    def _count_gathered(self, messages: Sequence[Tensor], *, lengths_known: bool) -> None:
        others = [m.nbytes for rank, m in enumerate(messages) if rank != self.rank]
        first = 0 if lengths_known else LENGTH_BYTES * len(others)
        self.meter.count(received=first + sum(others))

    def _count_merge(self, parts: Sequence[Tensor], sizes: Sequence[int]) -> None:
        others = [rank for rank in range(self.size) if rank != self.rank]
        sent = sum(parts[rank].nbytes for rank in others) + len(others) * sizes[self.rank]
        received = len(others) * parts[self.rank].nbytes + sum(sizes[rank] for rank in others)
        self.meter.count(sent=sent, received=received)

    def _count_broadcast(self, num_bytes: int) -> None:
        if self.rank == 0:
            self.meter.count(sent=(self.size - 1) * num_bytes)
        else:
            self.meter.count(received=num_bytes)

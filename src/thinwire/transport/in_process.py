"""A collective of threads of one process, for tests and to try many workers on one machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Condition
from typing import Any, TypeVar

from torch import Tensor

from thinwire.errors import UserError
from thinwire.transport.collective import Collective, Lengths, Pending, Reduce

T = TypeVar("T")


class _Group:
    """The messages of all workers of a group, by the number of the call."""

    def __init__(self, size: int, timeout_seconds: float) -> None:
        self.size, self.timeout_seconds = size, timeout_seconds
        self._given: dict[int, dict[int, Any]] = {}
        self._num_taken: dict[int, int] = {}
        self._gone: set[int] = set()
        self._changed = Condition()

    def give(self, call: int, rank: int, given: Any) -> None:
        with self._changed:
            self._given.setdefault(call, {})[rank] = given
            self._changed.notify_all()

    def leave(self, rank: int) -> None:
        with self._changed:
            self._gone.add(rank)
            self._changed.notify_all()

    def take(self, call: int) -> list[Any]:
        """Wait for what all workers give, by rank. It is forgotten once all have taken it."""
        with self._changed:
            given = self._given[call]
            everyone = set(range(self.size))

            def decided() -> bool:
                missing = everyone - given.keys()
                return not missing or bool(missing & self._gone)

            self._changed.wait_for(decided, self.timeout_seconds)
            missing = everyone - given.keys()
            if missing:
                raise self._missing(sorted(missing & self._gone or missing)[0])
            self._num_taken[call] = self._num_taken.get(call, 0) + 1
            if self._num_taken[call] == self.size:
                del self._given[call], self._num_taken[call]
            return [given[rank] for rank in sorted(given)]

    def _missing(self, rank: int) -> UserError:
        if rank in self._gone:
            return UserError(f"worker {rank} of {self.size} has left")
        return UserError(
            f"worker {rank} of {self.size} did not answer within {self.timeout_seconds:g} seconds"
        )


class InProcess(Collective):
    """One worker of a group of threads."""

    def __init__(self, rank: int, group: _Group) -> None:
        super().__init__(rank, group.size)
        self._group = group
        self._num_calls = 0

    def all_gather(self, message: Tensor, lengths: Lengths | None = None) -> Pending[list[Tensor]]:
        """See `Collective`."""
        self._count_given(message, lengths_known=lengths is not None)

        def found(all_given: list[Tensor]) -> list[Tensor]:
            self._count_gathered(all_given, lengths_known=lengths is not None)
            if lengths is not None and [len(given) for given in all_given] != list(lengths()):
                raise ValueError("what the others gave is not as long as it was said to be")
            return all_given

        return self._call(message.clone(), found)

    def all_reduce(
        self, parts: Sequence[Tensor], reduce: Reduce, sizes: Sequence[int]
    ) -> Pending[list[Tensor]]:
        """See `Collective`. Every worker computes all results, so that none waits twice."""
        self._count_all_reduce(parts, sizes)

        def found(all_given: list[tuple[list[Tensor], Reduce]]) -> list[Tensor]:
            return [
                its_reduce([parts_of[rank] for parts_of, _ in all_given])
                for rank, (_, its_reduce) in enumerate(all_given)
            ]

        return self._call(([part.clone() for part in parts], reduce), found)

    def broadcast(self, tensor: Tensor) -> None:
        """See `Collective`."""
        self._count_broadcast(tensor.nbytes)
        tensor.copy_(self._call(tensor.clone(), lambda all_given: all_given[0]).wait())

    def name_of(self, rank: int) -> str:
        """See `Collective`."""
        return f"worker {rank} of {self.size}"

    def close(self) -> None:
        """Leave the group: calls that need this worker fail at once from now on."""
        self._group.leave(self.rank)

    def _call(self, given: Any, finish: Callable[[list[Any]], T]) -> Pending[T]:
        """Give a copy, because this worker may change its tensor before another has read it."""
        call, self._num_calls = self._num_calls, self._num_calls + 1
        self._group.give(call, self.rank, given)
        return _Taken(self._group, call, finish)


class _Taken(Pending[T]):
    def __init__(self, group: _Group, call: int, finish: Callable[[list[Any]], T]) -> None:
        self._group, self._call, self._finish = group, call, finish
        self._found: list[T] = []

    def wait(self) -> T:
        if not self._found:
            self._found.append(self._finish(self._group.take(self._call)))
        return self._found[0]


def in_process_group(size: int, timeout_seconds: float = 30.0) -> list[InProcess]:
    """The workers of a group of `size` threads."""
    group = _Group(size, timeout_seconds)
    return [InProcess(rank, group) for rank in range(size)]

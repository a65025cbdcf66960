"""The collective of a worker that has no others."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from thinwire.transport.collective import Collective, Done, Lengths, Pending, Reduce


class Alone(Collective):
    """The collective of a single worker: it receives what it sends."""

    def __init__(self) -> None:
        super().__init__(rank=0, size=1)

    def all_gather(self, message: Tensor, lengths: Lengths | None = None) -> Pending[list[Tensor]]:
        """The message itself."""
        return Done([message])

    def all_reduce(
        self, parts: Sequence[Tensor], reduce: Reduce, sizes: Sequence[int]
    ) -> Pending[list[Tensor]]:
        """The result of `reduce` for this worker's own part."""
        return Done([reduce(parts)])

    def broadcast(self, tensor: Tensor) -> None:
        """Nothing to do."""

    def name_of(self, rank: int) -> str:
        """See `Collective`."""
        return "the only worker"

    def close(self) -> None:
        """Nothing to do."""

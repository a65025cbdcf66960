"""The collective of a worker that has no others."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from thinwire.transport.collective import Collective, Done, Lengths, Merge, Pending


class Alone(Collective):
    """One worker: what it gives is what it gets."""

    def __init__(self) -> None:
        super().__init__(rank=0, size=1)

    def all_gather(self, message: Tensor, lengths: Lengths | None = None) -> Pending[list[Tensor]]:
        """The message itself."""
        return Done([message])

    def merge(
        self, parts: Sequence[Tensor], merge: Merge, sizes: Sequence[int]
    ) -> Pending[list[Tensor]]:
        """What this worker makes of its own part."""
        return Done([merge(parts)])

    def broadcast(self, tensor: Tensor) -> None:
        """Nothing to do."""

    def name_of(self, rank: int) -> str:
        """See `Collective`."""
        return "the only worker"

    def close(self) -> None:
        """Nothing to do."""

"""A collective that fails at a chosen call, so that recovery can be tested without a crash."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from thinwire.errors import UserError
from thinwire.transport.collective import Collective, Lengths, Pending, Reduce


class Faulty(Collective):
    """Forwards every call to another collective, except one that fails like a broken link.

    Args:
        inner: the collective that performs the other calls.
        failing_call: the index, from 0, of the call that fails.
    """

    def __init__(self, inner: Collective, failing_call: int) -> None:
        super().__init__(inner.rank, inner.size)
        self.meter = inner.meter
        self._inner, self._failing_call = inner, failing_call
        self._num_calls = 0

    def all_gather(self, message: Tensor, lengths: Lengths | None = None) -> Pending[list[Tensor]]:
        """See `Collective`."""
        self._fail_if_due()
        return self._inner.all_gather(message, lengths)

    def all_reduce(
        self, parts: Sequence[Tensor], reduce: Reduce, sizes: Sequence[int]
    ) -> Pending[list[Tensor]]:
        """See `Collective`."""
        self._fail_if_due()
        return self._inner.all_reduce(parts, reduce, sizes)

    def broadcast(self, tensor: Tensor) -> None:
        """See `Collective`."""
        self._fail_if_due()
        self._inner.broadcast(tensor)

    def name_of(self, rank: int) -> str:
        """See `Collective`."""
        return self._inner.name_of(rank)

    def close(self) -> None:
        """See `Collective`."""
        self._inner.close()

    def _fail_if_due(self) -> None:
        call, self._num_calls = self._num_calls, self._num_calls + 1
        if call == self._failing_call:
            raise UserError(f"{self.name_of(self.rank)} has lost the others")

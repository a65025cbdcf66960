"""A collective that fails when it is told to, so that recovery can be tested without a crash."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from thinwire.errors import UserError
from thinwire.transport.collective import Collective, Lengths, Merge, Pending


class Faulty(Collective):
    """Passes every call on but the k-th, which fails as a broken link does.

    Args:
        inner: what the calls are passed on to.
        failing_call: the number, from 0, of the call that fails.
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

    def merge(
        self, parts: Sequence[Tensor], merge: Merge, sizes: Sequence[int]
    ) -> Pending[list[Tensor]]:
        """See `Collective`."""
        self._fail_if_due()
        return self._inner.merge(parts, merge, sizes)

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

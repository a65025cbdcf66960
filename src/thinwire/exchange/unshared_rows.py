"""Unshared rows: a worker touches them, and the others do not know it until they receive the ids.

R rows of a table touched, S of them shared (drawn from a shared seed), O = R - S unshared rows of
one worker, U unshared rows of any worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thinwire.exchange.coded import joined
from thinwire.optim.rows import add
from thinwire.touched import Touched
from thinwire.wire.indices import decode_ids, encode_ids, ids_bytes


@dataclass(frozen=True)
class UnsharedRows:
    """The unshared rows of tables that are touched at the same ids, as a weight and its bias are.

    Attributes:
        names: the names of the tables.
        shared_S: ids of the shared rows.
        ids_O: ids of the unshared rows, sorted.
        order_O: the position of each of them among the unshared rows of the gradient.
    """

    names: tuple[str, ...]
    shared_S: Tensor
    ids_O: Tensor
    order_O: Tensor

    def of(self, gradient_R: Tensor) -> Tensor:
        """The gradient of the unshared rows, in the order of `ids_O`."""
        return gradient_R[len(self.shared_S) :].index_select(0, self.order_O)


def unshared_rows(touched: Touched) -> list[UnsharedRows]:
    """The tables of which not every row is touched, in groups that share their ids."""
    own = []
    for names, ids_R in touched.groups():
        if ids_R is None:
            continue
        shared_S, rest_O = ids_R.tensor_split([touched.num_shared.get(names[0], 0)])
        ids_O, order_O = rest_O.sort()
        own.append(UnsharedRows(names, shared_S, ids_O, order_O))
    return own


def encode_announcement(own: Sequence[UnsharedRows]) -> Tensor:
    """The ids of all unshared rows, encoded."""
    return joined([encode_ids(group.ids_O) for group in own])


def decode_announcement(message: Tensor, own: Sequence[UnsharedRows]) -> list[Tensor]:
    """Decode the ids `[O]` of each group that a worker announced."""
    ids = []
    for group in own:
        size = ids_bytes(message)
        ids.append(decode_ids(message[:size]).to(group.ids_O.device))
        message = message[size:]
    return ids


@dataclass(frozen=True)
class MergedRows:
    """The rows of a group that any worker touched: shared rows, then unshared rows, sorted."""

    group: UnsharedRows
    ids_of: Sequence[Tensor]
    """For each worker, the ids of its unshared rows."""
    ids_U: Tensor

    @classmethod
    def of(cls, group: UnsharedRows, ids_of: Sequence[Tensor]) -> MergedRows:
        """Merge the ids that the workers announced."""
        return cls(group, ids_of, torch.cat(list(ids_of)).unique())

    @property
    def ids(self) -> Tensor:
        """All rows, `[S + U]`."""
        return torch.cat([self.group.shared_S, self.ids_U])

    def sum_by_row(self, shared_S: Tensor, own_of: Sequence[Tensor]) -> Tensor:
        """Gradients of all rows: the sum of the shared ones, then the sums of the unshared ones.

        The unshared rows are added in the order of the ranks.
        """
        S, U = len(shared_S), len(self.ids_U)
        all_SU = shared_S.new_empty(S + U, *shared_S.shape[1:])
        all_SU[:S] = shared_S
        own_U = all_SU[S:].zero_()
        for ids_O, own_O in zip(self.ids_of, own_of, strict=True):
            add(own_U, torch.searchsorted(self.ids_U, ids_O), own_O.to(own_U.device))
        return all_SU

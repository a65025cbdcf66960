"""Merges the local Adagrad steps of several workers on a row into the step of their mean gradient.

Adagrad divides a row's gradient by the root of its accumulator, the sum of squared gradients.
Workers that step alone divide by accumulators of their own. If a word is only a rare negative
sample for one worker, its small gradient becomes as large a step as the large gradient of another
worker, so the mean of the steps is not the step of the mean gradient. Each worker therefore sends
with each row the growth of its accumulator. From that the others compute what its step was divided
by, undo the division, and divide the mean by the accumulator of the merged gradients:

    D_w = step_w sqrt(accumulator_w)       the sum of worker w's gradients, times the rate
    A  += sum_w growth_w / W^2             the square of the mean of W independent gradients
    step = sum_w D_w / (W sqrt(A))

A row that only one worker has touched moves as far as that worker's step. A row that all workers
have touched moves further than the mean of their steps, because their noise averages out. With one
local step this is nearly the synchronous update, which accumulates squares of sums where this
accumulates sums of squares.

Locally a worker continues with the accumulator W A, because its gradients are computed on 1/W of
the text. It also starts with W A. A is the accumulator that one worker with all the text would
have, `initial_accumulator` included; A is what a run saves.

V rows of a table, R rows of a turn, O rows of one worker among them, W workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from thinwire.optim.rows import RowOptimizer, add_scaled, column

SMALLEST = 1e-20
"""Lower limit of an accumulator's root: the accumulator is 0 for rows whose gradients were zero."""


class Accumulators:
    """The accumulators of every table: those that the workers agreed on, and this worker's own.

    Args:
        tables: the tables that Adagrad updates, with one accumulator per row.
        optimizer: the optimiser of the tables. All workers' accumulators must be equal, and have
            the values that a single worker would have.
        num_workers: W.
    """

    def __init__(
        self, tables: Mapping[str, Tensor], optimizer: RowOptimizer, num_workers: int
    ) -> None:
        self._num_workers = num_workers
        self._own: dict[str, Tensor] = {
            name: optimizer.state[table]["sum"] for name, table in tables.items()
        }
        self._agreed = {name: own_V.clone() for name, own_V in self._own.items()}
        for own_V in self._own.values():
            own_V.mul_(num_workers)
        self._reported = {name: own_V.clone() for name, own_V in self._own.items()}
        """The part of this worker's accumulators that it has sent to the others."""

    def restore_agreed(self) -> None:
        """Set the optimiser's accumulators to the agreed ones. Growth that was not sent is lost."""
        for name, own_V in self._own.items():
            own_V.copy_(self._agreed[name])

    def growth(self, name: str, ids_O: Tensor) -> Tensor:
        """How much this worker's accumulators have grown since the last call for a row, `[O]`."""
        own_O = self._own[name].index_select(0, ids_O)
        growth_O = own_O - self._reported[name].index_select(0, ids_O)
        self._reported[name].index_copy_(0, ids_O, own_O)
        return growth_O

    def merged(
        self, name: str, ids_R: Tensor, parts: Sequence[tuple[Tensor, Tensor, Tensor]]
    ) -> Tensor:
        """Merge all workers' steps into one step on these rows, and agree on the accumulators.

        Args:
            name: the name of the table.
            ids_R: the rows that any worker has changed.
            parts: for each worker, the indices of its rows in `ids_R` `[O]`, its steps
                `[O, ...]`, and the growth of its accumulators `[O]`.

        Returns:
            The merged step, `[R, ...]`.
        """
        W = self._num_workers
        before_R = self._agreed[name].index_select(0, ids_R)
        after_R = before_R.clone()
        total_R = parts[0][1].new_zeros(len(ids_R), *parts[0][1].shape[1:])
        for index_O, steps_O, growth_O in parts:
            root_O = (W * before_R[index_O] + growth_O).sqrt_()
            add_scaled(total_R, index_O, steps_O, root_O)
            after_R.index_add_(0, index_O, growth_O / W**2)
        self._agreed[name].index_copy_(0, ids_R, after_R)
        self._set_agreed(name, ids_R, after_R)
        root_R = after_R.sqrt().mul_(W).clamp_(min=SMALLEST)
        return total_R.div_(column(root_R, total_R))

    def _set_agreed(self, name: str, ids_R: Tensor, agreed_R: Tensor) -> None:
        """Set this worker's accumulators to the agreed ones plus the growth not yet sent."""
        own, reported = self._own[name], self._reported[name]
        known_R = self._num_workers * agreed_R
        unsent_R = own.index_select(0, ids_R) - reported.index_select(0, ids_R)
        own.index_copy_(0, ids_R, known_R + unsent_R)
        reported.index_copy_(0, ids_R, known_R)

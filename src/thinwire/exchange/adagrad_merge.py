"""How local steps of several workers on a row become one step: as if their gradients had been one.

Adagrad divides a row's gradient by the root of what its squares have piled up to. Workers that step
alone divide each by their own pile: for one to whom a word is a negative sample now and then, a
small gradient is as large a step as another worker's large one, and the mean of such steps is not
the step of the mean gradient. So a worker says with each row by how much its pile has grown. From
that everybody knows what its step was divided by, undoes it, and divides the mean by the pile that
the merged gradients would have made:

    D_w = step_w sqrt(pile_w)              what worker w's gradients come to, times the rate
    A  += sum_w growth_w / W^2             the mean of W gradients has so much less of a square
    step = sum_w D_w / (W sqrt(A))

A row that one worker alone has seen moves as far as its step, and one that all have seen by more
than the mean of their steps, because their noise averages out. With one local step this is nearly
the synchronous update, which only knows the squares of sums where this knows sums of squares.

Locally a worker goes on with a pile of W A: its own gradients are of W times less text. It also
begins with one: A is the pile that one worker with all the text would have, `initial_accumulator`
included, and what a run saves.

V rows of a table, R rows of a turn, O rows of one worker among them, W workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from thinwire.optim.rows import RowOptimizer, add_scaled, column

SMALLEST = 1e-20
"""Of a pile's root: rows whose gradients were zero have none."""


class Accumulators:
    """The piles of every table, agreed on and of this worker.

    Args:
        tables: that Adagrad updates, with one number a row.
        optimizer: of the tables; all workers' piles are equal now, and those of one worker.
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
        self._counted = {name: own_V.clone() for name, own_V in self._own.items()}
        """Of this worker's piles, what the others know of."""

    def hand_over(self) -> None:
        """Let the optimiser's piles be the agreed ones; what the others do not know is dropped."""
        for name, own_V in self._own.items():
            own_V.copy_(self._agreed[name])

    def growth(self, name: str, ids_O: Tensor) -> Tensor:
        """By how much this worker's piles have grown since it was last asked, `[O]`."""
        own_O = self._own[name].index_select(0, ids_O)
        grown_O = own_O - self._counted[name].index_select(0, ids_O)
        self._counted[name].index_copy_(0, ids_O, own_O)
        return grown_O

    def merged(
        self, name: str, ids_R: Tensor, parts: Sequence[tuple[Tensor, Tensor, Tensor]]
    ) -> Tensor:
        """One step on these rows out of all workers', `[R, ...]`; the piles become the agreed ones.

        Args:
            name: of the table.
            ids_R: rows that any worker has stepped on.
            parts: for each worker, where its rows stand among them `[O]`, its steps `[O, ...]`, and
                the growth of its piles `[O]`.
        """
        W = self._num_workers
        before_R = self._agreed[name].index_select(0, ids_R)
        after_R = before_R.clone()
        total_R = parts[0][1].new_zeros(len(ids_R), *parts[0][1].shape[1:])
        for place_O, steps_O, grown_O in parts:
            root_O = (W * before_R[place_O] + grown_O).sqrt_()
            add_scaled(total_R, place_O, steps_O, root_O)
            after_R.index_add_(0, place_O, grown_O / W**2)
        self._agreed[name].index_copy_(0, ids_R, after_R)
        self._carry_on(name, ids_R, after_R)
        root_R = after_R.sqrt().mul_(W).clamp_(min=SMALLEST)
        return total_R.div_(column(root_R, total_R))

    def _carry_on(self, name: str, ids_R: Tensor, agreed_R: Tensor) -> None:
        """Let this worker's piles be the agreed ones, and what has grown since it was asked."""
        own, counted = self._own[name], self._counted[name]
        known_R = self._num_workers * agreed_R
        since_R = own.index_select(0, ids_R) - counted.index_select(0, ids_R)
        own.index_copy_(0, ids_R, known_R + since_R)
        counted.index_copy_(0, ids_R, known_R)

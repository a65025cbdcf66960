"""One step on a row out of the steps of several workers, each of which Adagrad has divided."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from thinwire.exchange.adagrad_merge import Accumulators
from thinwire.optim.rowwise import RowAdagrad

RATE = 0.1


class Worker:
    """A table of six rows of four numbers, its Adagrad, and its accumulators."""

    def __init__(self, num_workers: int, accumulator: float) -> None:
        self.table = nn.Parameter(torch.zeros(6, 4))
        self.rows = RowAdagrad([self.table], RATE, initial_accumulator_value=accumulator)
        self.accumulators = Accumulators({"table": self.table}, self.rows, num_workers)

    @property
    def sums(self) -> Tensor:
        accumulator: Tensor = self.rows.state[self.table]["sum"]
        return accumulator

    def steps(self, ids: list[int], gradients: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The delta of the rows `ids`, and the growth of their accumulators."""
        before, ids_O = self.table.detach().clone(), tensor(ids)
        for gradient_O in gradients:
            self.rows.update_rows(self.table, ids_O, gradient_O)
        moved_O = (before - self.table.detach())[ids_O]
        return moved_O, self.accumulators.growth("table", ids_O)


def tensor(ids: list[int]) -> Tensor:
    return torch.tensor(ids, dtype=torch.int64)


def merged(workers: list[Worker], ids: list[int], parts: list[Any]) -> list[Tensor]:
    """Every worker's outcome; a part is a worker's ids, their steps, and the growth."""
    pieces = [(tensor([ids.index(i) for i in own]), *rest) for own, *rest in parts]
    return [w.accumulators.merged("table", tensor(ids), pieces) for w in workers]


@pytest.mark.parametrize("num_workers", [2, 3, 16])
def test_a_new_row_of_one_worker_alone_moves_as_far_as_its_steps(num_workers: int) -> None:
    workers = [Worker(num_workers, 0.0) for _ in range(num_workers)]
    gradients = [torch.randn(1, 4, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    moved, grown = workers[0].steps([2], gradients)
    empty = ([], torch.zeros(0, 4), torch.zeros(0))
    for step in merged(workers, [2], [([2], moved, grown), *[empty] * (num_workers - 1)]):
        torch.testing.assert_close(step, moved)


@pytest.mark.parametrize("accumulator", [0.0, 0.3])
def test_one_step_of_each_is_the_step_of_the_mean_gradient(accumulator: float) -> None:
    """Exactly, where gradients have nothing in common: the square of the sum is that of squares.

    Rows 1 and 4 are of both workers, 0 of the first alone, 5 of the second.
    """
    workers = [Worker(2, accumulator) for _ in range(2)]
    whole = Worker(1, accumulator)
    own = [[0, 1, 4], [1, 4, 5]]
    parts, mean_V = [], torch.zeros(6, 4)
    for rank, (worker, ids) in enumerate(zip(workers, own, strict=True)):
        gradient_O = torch.zeros(3, 4)
        gradient_O[:, 2 * rank : 2 * rank + 2] = 1.0 + torch.rand(3, 2)
        mean_V[ids] += gradient_O / 2
        parts.append((ids, *worker.steps(ids, [gradient_O])))
    expected, _ = whole.steps([0, 1, 4, 5], [mean_V[[0, 1, 4, 5]]])
    for step in merged(workers, [0, 1, 4, 5], parts):
        torch.testing.assert_close(step, expected)
    for worker in workers:
        # Each continues with twice the merged accumulator: its gradients are of half the text.
        torch.testing.assert_close(worker.sums, 2 * whole.sums)


def test_what_has_grown_since_is_kept_and_counted_next_time() -> None:
    worker, ids = Worker(2, 0.25), tensor([3])
    ones = torch.ones(1, 4)
    moved, grown = worker.steps([3], [ones])
    assert grown.tolist() == [1.0]
    worker.rows.update_rows(worker.table, ids, 2 * ones)  # while the first is on its way
    part = (tensor([0]), moved, grown)
    empty = (tensor([]), torch.zeros(0, 4), torch.zeros(0))
    worker.accumulators.merged("table", ids, [part, empty])
    # Agreed: 0.25 + 1 / 4; this worker's is twice that, and the 4 of its second step.
    assert worker.sums[3] == pytest.approx(1.0 + 4.0)
    assert worker.accumulators.growth("table", ids).tolist() == pytest.approx([4.0])
    assert worker.accumulators.growth("table", ids).tolist() == [0.0]


def test_rows_without_a_gradient_stay_where_they_are() -> None:
    workers = [Worker(2, 0.0) for _ in range(2)]
    parts = [([1], *worker.steps([1], [torch.zeros(1, 4)])) for worker in workers]
    for step in merged(workers, [1], parts):
        assert not step.any()


def test_workers_that_agree_stay_equal() -> None:
    workers = [Worker(3, 0.1) for _ in range(3)]
    for turn in range(4):
        parts = []
        for rank, worker in enumerate(workers):
            generator = torch.Generator().manual_seed(10 * turn + rank)
            gradient = torch.randn(2, 4, generator=generator)
            ids = [rank, 3 + turn % 3]
            parts.append((ids, *worker.steps(ids, [gradient])))
        steps = merged(workers, [0, 1, 2, 3 + turn % 3], parts)
        assert all(torch.equal(a, b) for a, b in pairwise(steps))
        assert all(torch.equal(a.sums, b.sums) for a, b in pairwise(workers))

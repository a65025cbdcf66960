"""SGD and Adagrad on rows against torch.optim, and against loops over rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from thinwire.optim import FullAdagrad, RowAdagrad, RowSGD

VISITS = ([0, 3, 6], [3], [], [1, 2, 3, 4])


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", [(), (3,), (4,)])
@pytest.mark.parametrize("initial", [0.0, 0.5])
def test_row_adagrad_follows_its_formula(width: tuple[int, ...], initial: float) -> None:
    table = nn.Parameter(randn(7, *width))
    expected, sum_V = table.detach().clone(), torch.full((7,), initial)
    optimizer = RowAdagrad([table], lr=0.1, initial_accumulator_value=initial)
    for step, ids in enumerate(VISITS):
        grad_R = randn(len(ids), *width, seed=step)
        optimizer.update_rows(table, torch.tensor(ids, dtype=torch.int64), grad_R)
        for row, grad in zip(ids, grad_R, strict=True):
            sum_V[row] += (grad**2).mean()
            expected[row] -= 0.1 * grad / sum_V[row].sqrt()
    torch.testing.assert_close(table.detach(), expected)
    torch.testing.assert_close(optimizer.state[table]["sum"], sum_V)


def test_row_adagrad_keeps_one_float_a_row() -> None:
    table = nn.Parameter(randn(7, 3))
    (sum_V,) = RowAdagrad([table], lr=0.1).state[table].values()
    assert sum_V.shape == (7,)
    assert sum_V.dtype == torch.float32


@pytest.mark.parametrize("width", [(), (3,), (4,)])
def test_full_adagrad_equals_torchs(width: tuple[int, ...]) -> None:
    ours, theirs = nn.Parameter(randn(7, *width)), nn.Parameter(randn(7, *width))
    first = FullAdagrad([ours], lr=0.1, initial_accumulator_value=0.5)
    second = torch.optim.Adagrad([theirs], lr=0.1, initial_accumulator_value=0.5)
    for step in range(20):
        ours.grad = theirs.grad = randn(7, *width, seed=step)
        first.step()
        second.step()
    torch.testing.assert_close(ours, theirs)


@torch.sparse.check_sparse_tensor_invariants()
def test_full_adagrad_equals_torchs_on_sparse_gradients() -> None:
    ours, theirs = nn.Parameter(randn(7, 3)), nn.Parameter(randn(7, 3))
    first, second = FullAdagrad([ours], lr=0.1), torch.optim.Adagrad([theirs], lr=0.1)
    for step, ids in enumerate(VISITS):
        ours.grad = theirs.grad = torch.sparse_coo_tensor(
            torch.tensor([ids], dtype=torch.int64),
            randn(len(ids), 3, seed=step),
            (7, 3),
        )
        first.step()
        second.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("width", [(), (3,), (4,)])
def test_row_sgd_equals_torchs(width: tuple[int, ...]) -> None:
    ours, theirs = nn.Parameter(randn(7, *width)), nn.Parameter(randn(7, *width))
    first, second = RowSGD([ours], lr=0.1), torch.optim.SGD([theirs], lr=0.1)
    for step in range(5):
        ours.grad = theirs.grad = randn(7, *width, seed=step)
        first.step()
        second.step()
    torch.testing.assert_close(ours, theirs)

"""Lazy Adam and AdamW: torch's where every row is touched, the sums written out where not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from thinwire.optim import RowAdam


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", [(), (3,), (4,)])
@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_touching_every_row_is_torchs_adam(
    width: tuple[int, ...], by_name: bool, weight_decay: float
) -> None:
    ours, theirs = nn.Parameter(randn(5, *width)), nn.Parameter(randn(5, *width))
    first = RowAdam([ours], lr=0.05, weight_decay=weight_decay)
    second: torch.optim.Optimizer = (
        torch.optim.AdamW([theirs], lr=0.05, weight_decay=weight_decay)
        if weight_decay
        else torch.optim.Adam([theirs], lr=0.05)
    )
    for step in range(100):
        grad = randn(5, *width, seed=step)
        first.update_rows(ours, torch.arange(5) if by_name else None, grad)
        theirs.grad = grad
        second.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_row_is_moved_by_the_weighted_average_of_its_own_gradients() -> None:
    lr, beta1, beta2, eps, decay = 0.1, 0.8, 0.95, 1e-8, 0.2
    visits = [[0, 1], [1], [], [1, 2], [0], [], [], [0, 1, 2]]
    table = nn.Parameter(randn(4, 3))
    optimizer = RowAdam([table], lr, betas=(beta1, beta2), eps=eps, weight_decay=decay)
    expected = table.detach().double()
    history: dict[int, list[tuple[int, Tensor]]] = {row: [] for row in range(4)}

    for step, ids in enumerate(visits):
        grad_R = randn(len(ids), 3, seed=step)
        optimizer.update_rows(table, torch.tensor(ids, dtype=torch.int64), grad_R)
        for row, grad in zip(ids, grad_R.double(), strict=True):
            last_step = history[row][-1][0] if history[row] else -1
            history[row].append((step, grad))
            weights1 = [beta1 ** (step - then) for then, _ in history[row]]
            weights2 = [beta2 ** (step - then) for then, _ in history[row]]
            mean = sum(w * g for w, (_, g) in zip(weights1, history[row], strict=True))
            square = sum(w * g**2 for w, (_, g) in zip(weights2, history[row], strict=True))
            mean, square = mean / sum(weights1), square / sum(weights2)
            expected[row] *= (1 - lr * decay) ** (step - last_step)
            expected[row] -= lr * mean / (square.sqrt() + eps)

    torch.testing.assert_close(table.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_a_row_first_touched_late_moves_by_one_rate() -> None:
    table = nn.Parameter(torch.zeros(2, 3))
    optimizer = RowAdam([table], lr=0.1)
    for _ in range(1000):
        optimizer.update_rows(table, torch.tensor([0]), torch.ones(1, 3))
    optimizer.update_rows(table, torch.tensor([1]), torch.full((1, 3), 0.01))
    torch.testing.assert_close(table[1].detach(), torch.full((3,), -0.1))


def test_weight_decay_is_paid_when_next_touched() -> None:
    table = nn.Parameter(torch.ones(2, 4))
    optimizer = RowAdam([table], lr=0.1, weight_decay=0.5)
    for _ in range(9):
        optimizer.update_rows(table, torch.tensor([0]), torch.zeros(1, 4))
    assert torch.equal(table[1], torch.ones(4))
    optimizer.update_rows(table, None, torch.zeros(2, 4))
    torch.testing.assert_close(table.detach(), torch.full((2, 4), 0.95**10))

"""AdaptAhead against its four lines, on dense blocks and on rows that miss steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from thinwire.optim import AdaptAhead


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(), (5,), (5, 3), (5, 4), (2, 3, 4)])
def test_dense_blocks_follow_the_formula(shape: tuple[int, ...]) -> None:
    lr, mu, rho, eps = 0.01, 0.8, 0.95, 1e-8
    block = nn.Parameter(randn(*shape))
    optimizer = AdaptAhead([block], lr, momentum=mu, rho=rho, eps=eps)
    expected, v, m = block.detach().double(), torch.zeros(shape).double(), torch.zeros(shape)
    for step in range(20):
        block.grad = randn(*shape, seed=step)
        optimizer.step()
        grad = block.grad.double()
        v = rho * v + (1 - rho) * grad**2
        u = lr * grad / (v.sqrt() + eps)
        m = mu * m + u
        expected = expected - (mu * m + u)
    torch.testing.assert_close(block.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_rows_decay_by_the_steps_they_missed() -> None:
    lr, mu, rho, eps = 0.01, 0.8, 0.95, 1e-8
    visits = [[0, 1], [1], [], [1, 2], [0], [], [], [0, 1, 2]]
    table = nn.Parameter(randn(4, 3))
    optimizer = AdaptAhead([table], lr, momentum=mu, rho=rho, eps=eps)
    expected = table.detach().double()
    v, m = torch.zeros(4, 3).double(), torch.zeros(4, 3).double()
    for step, ids in enumerate(visits):
        grad_R = randn(len(ids), 3, seed=step)
        optimizer.update_rows(table, torch.tensor(ids, dtype=torch.int64), grad_R)
        v, m = rho * v, mu * m
        for row, grad in zip(ids, grad_R.double(), strict=True):
            v[row] += (1 - rho) * grad**2
            u = lr * grad / (v[row].sqrt() + eps)
            m[row] += u
            expected[row] -= mu * m[row] + u
    torch.testing.assert_close(table.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_it_finds_a_minimum() -> None:
    point = nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = AdaptAhead([point], lr=0.02)
    scale = torch.tensor([1.0, 100.0])
    for _ in range(300):
        point.grad = 2 * scale * point.detach()
        optimizer.step()
    assert point.abs().max() < 0.2

"""Row-wise SGD and Adagrad against torch.optim and against plain loops."""

from __future__ import annotations

import torch
from torch import nn

from thinwire.optim.rowwise import RowAdagrad, RowSGD


def test_row_adagrad_follows_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    table_VD = nn.Parameter(torch.randn(7, 3, generator=generator))
    expected_VD, sum_V = table_VD.detach().clone(), torch.full((7,), 0.5)
    optimizer = RowAdagrad([table_VD], lr=0.1, initial_accumulator_value=0.5)
    for ids in ([0, 3, 6], [3], [], [1, 2, 3, 4]):
        grad_RD = torch.randn(len(ids), 3, generator=generator)
        optimizer.update_rows(table_VD, torch.tensor(ids, dtype=torch.int64), grad_RD)
        for row, grad_D in zip(ids, grad_RD, strict=True):
            sum_V[row] += (grad_D**2).mean()
            expected_VD[row] -= 0.1 * grad_D / sum_V[row].sqrt()
    torch.testing.assert_close(table_VD.detach(), expected_VD)
    torch.testing.assert_close(optimizer.state[table_VD]["sum"], sum_V)


def test_row_sgd_equals_torch() -> None:
    table_VD = nn.Parameter(torch.randn(5, 2, generator=torch.Generator().manual_seed(0)))
    other_VD = nn.Parameter(table_VD.detach().clone())
    table_VD.grad = other_VD.grad = torch.ones(5, 2)
    RowSGD([table_VD], lr=0.1).step()
    torch.optim.SGD([other_VD], lr=0.1).step()
    torch.testing.assert_close(table_VD, other_VD)

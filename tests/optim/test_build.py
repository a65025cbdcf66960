"""Every setting builds the optimiser that it names, and every rate arrives."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn

from thinwire.optim import OptimConfig, RowAdam, dense_optimizer, row_optimizer
from thinwire.optim.config import DenseKind, RowKind


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(*s, generator=generator)) for s in [(4, 3), (4,), (2, 2, 2)]]


@pytest.mark.parametrize("kind", get_args(DenseKind))
def test_dense_blocks_learn(kind: DenseKind) -> None:
    blocks = parameters()
    optimizer = dense_optimizer(blocks, OptimConfig(kind=kind, lr=0.01))
    assert all(group["lr"] == 0.01 for group in optimizer.param_groups)
    before = sum(p.square().sum().item() for p in blocks)
    for _ in range(5):
        optimizer.zero_grad()
        sum(p.square().sum() for p in blocks).backward()
        optimizer.step()
    assert sum(p.square().sum().item() for p in blocks) < before


@pytest.mark.parametrize("kind", get_args(RowKind))
def test_rows_learn(kind: RowKind) -> None:
    tables = parameters()[:2]
    optimizer = row_optimizer(tables, OptimConfig(rows=kind, row_lr=0.01))
    assert all(group["lr"] == 0.01 for group in optimizer.param_groups)
    ids_R = torch.tensor([1, 3])
    before = [t[ids_R].square().sum().item() for t in tables]
    for _ in range(5):
        for table in tables:
            optimizer.update_rows(table, ids_R, 2 * table.detach()[ids_R])
    for table, start in zip(tables, before, strict=True):
        assert table[ids_R].square().sum().item() < start


def test_fused_adam_is_torchs_adam() -> None:
    ours, theirs = parameters(), parameters()
    first = dense_optimizer(ours, OptimConfig(kind="adamw", lr=0.01, weight_decay=0.0))
    second = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.0, fused=False)
    for seed in range(10):
        for mine, other in zip(ours, theirs, strict=True):
            generator = torch.Generator().manual_seed(seed)
            mine.grad = other.grad = torch.randn(mine.shape, generator=generator)
        first.step()
        second.step()
    torch.testing.assert_close(ours, theirs)


def test_matrices_decay_and_vectors_do_not() -> None:
    config = OptimConfig(kind="adamw", rows="adamw", lr=0.1, row_lr=0.1, weight_decay=0.5)
    for optimizer in (dense_optimizer(parameters(), config), row_optimizer(parameters(), config)):
        for parameter in [p for group in optimizer.param_groups for p in group["params"]]:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        moved = [p for group in optimizer.param_groups for p in group["params"]]
        for parameter in moved:
            start = next(p for p in parameters() if p.shape == parameter.shape)
            factor = 0.95 if parameter.ndim >= 2 else 1.0
            torch.testing.assert_close(parameter.detach(), factor * start.detach())


def test_betas_and_accumulators_arrive() -> None:
    adam = OptimConfig(kind="adam", rows="adam", beta1=0.5, beta2=0.7)
    for optimizer in (dense_optimizer(parameters(), adam), row_optimizer(parameters(), adam)):
        assert optimizer.param_groups[0]["betas"] == (0.5, 0.7)
    assert isinstance(row_optimizer(parameters(), adam), RowAdam)
    for rows in ("adagrad", "adagrad_full"):
        config = OptimConfig(kind="adagrad", rows=rows, initial_accumulator=0.3)
        for optimizer in (
            dense_optimizer(parameters(), config),
            row_optimizer(parameters(), config),
        ):
            state = optimizer.state[optimizer.param_groups[0]["params"][0]]
            assert torch.equal(state["sum"], torch.full_like(state["sum"], 0.3))
    ahead = OptimConfig(kind="adaptahead", rows="adaptahead", momentum=0.3, rho=0.4)
    for optimizer in (dense_optimizer(parameters(), ahead), row_optimizer(parameters(), ahead)):
        group = optimizer.param_groups[0]
        assert (group["momentum"], group["rho"]) == (0.3, 0.4)

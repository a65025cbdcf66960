"""Clipping equals torch's on the dense gradient, with a row counted once."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from thinwire.optim import clip_gradients, gradients_of


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_dense_gradients_are_clipped_as_torch_does(max_norm: float) -> None:
    parameters = [nn.Parameter(randn(3, 4)), nn.Parameter(randn(5)), nn.Parameter(randn(2))]
    for seed, parameter in enumerate(parameters[:2]):
        parameter.grad = randn(*parameter.shape, seed=seed)
    ours = [g.clone() for g in gradients_of(parameters)]
    assert len(ours) == 2
    norm = clip_gradients(ours, max_norm)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(parameters, max_norm))
    for mine, parameter in zip(ours, parameters[:2], strict=True):
        torch.testing.assert_close(mine, parameter.grad)


def test_a_row_counts_once_however_often_it_was_used() -> None:
    """(3, 0) and (0, 4), two uses of row 1, make one gradient of norm 5; those of row 0 cancel."""
    table, block = nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(1))
    table.grad = torch.sparse_coo_tensor(
        [[1, 0, 1, 0]],
        torch.tensor([[3.0, 0.0], [1.0, -1.0], [0.0, 4.0], [-1.0, 1.0]]),
        (3, 2),
        check_invariants=True,
    )
    block.grad = torch.tensor([12.0])
    norm = clip_gradients(gradients_of([table, block]), max_norm=6.5)
    assert float(norm) == 13
    torch.testing.assert_close(table.grad.to_dense()[1], torch.tensor([1.5, 2.0]))
    torch.testing.assert_close(block.grad, torch.tensor([6.0]))


def test_an_unmerged_gradient_is_refused() -> None:
    grad = torch.sparse_coo_tensor([[1, 1]], torch.ones(2, 2), (3, 2), check_invariants=True)
    with pytest.raises(ValueError, match="must be coalesced"):
        clip_gradients([grad], 1.0)


def test_zero_means_only_measure() -> None:
    grad = torch.tensor([3.0, 4.0])
    assert float(clip_gradients([grad], 0.0)) == 5
    assert grad.tolist() == [3, 4]


def test_nothing_at_all_and_no_rows_have_norm_zero() -> None:
    assert float(clip_gradients([], 1.0)) == 0
    assert float(clip_gradients([torch.empty(0, 4)], 1.0)) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_shows_in_the_norm(bad: float) -> None:
    assert not clip_gradients([torch.ones(2), torch.tensor([1.0, bad])], 1.0).isfinite()

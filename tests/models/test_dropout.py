"""Dropout masks belong to (seed, step, stream), whoever computes the stream."""

from __future__ import annotations

import torch
from torch import Tensor

from thinwire.models.dropout import DropoutMasks


def masks(first_stream: int, B: int, *, step: int = 3, seed: int = 1, D: int = 64) -> list[Tensor]:
    """Two masks in a row, of different widths, as 0 and 2."""
    dropout = DropoutMasks(0.5, seed, step, first_stream, B)
    return [dropout.drop(torch.ones(B, 2, width)) for width in (D, D // 2)]


def test_workers_drop_what_one_worker_drops() -> None:
    one = masks(0, 6)
    for num_workers in (2, 3, 6):
        b = 6 // num_workers
        parts = [masks(worker * b, b) for worker in range(num_workers)]
        for index, whole in enumerate(one):
            assert torch.equal(torch.cat([part[index] for part in parts]), whole)


def test_streams_steps_and_seeds_differ() -> None:
    mask, later = masks(0, 2)
    assert not torch.equal(mask[0], mask[1])
    assert not torch.equal(mask[:, :, :32], later)
    assert not torch.equal(mask, masks(0, 2, step=4)[0])
    assert not torch.equal(mask, masks(0, 2, seed=2)[0])


def test_a_mask_holds_for_the_whole_window() -> None:
    mask = masks(0, 3)[0]
    assert torch.equal(mask[:, 0], mask[:, 1])


def test_rate_0_is_the_identity() -> None:
    x_BTD = torch.randn(2, 3, 4)
    assert DropoutMasks(0.0, 0, 0, 0, 2).drop(x_BTD) is x_BTD


def test_share_and_mean() -> None:
    dropped = DropoutMasks(0.3, 0, 0, 0, 8).drop(torch.ones(8, 1, 5000))
    assert abs(float((dropped == 0).float().mean()) - 0.3) < 0.01
    assert abs(float(dropped.mean()) - 1.0) < 0.01


def test_nothing_ambient_is_drawn_from() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = masks(0, 2)
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(first, masks(0, 2), strict=True))
    torch.manual_seed(0)
    assert torch.equal(before, torch.get_rng_state())

"""One worker: fetching gathers, pushing steps, and only what was touched changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from thinwire.exchange.local import Local
from thinwire.optim.rowwise import RowSGD
from thinwire.optim.updater import Updater
from thinwire.touched import Touched

torch.set_num_threads(1)


class Parts:
    """A table of 5 rows, biases, and a block; the gradient of everything is one."""

    def __init__(self, clip: float = 0.0) -> None:
        self.table = nn.Parameter(torch.arange(10.0).view(5, 2))
        self.bias = nn.Parameter(torch.zeros(5))
        self.block = nn.Parameter(torch.zeros(3))
        tables, blocks = {"table": self.table, "bias": self.bias}, {"block": self.block}
        rows = RowSGD(tables.values(), lr=1.0)
        dense = torch.optim.SGD(blocks.values(), lr=1.0)
        self.blocks = blocks
        self.exchange = Local(Updater(tables, blocks, rows, dense, clip))
        self.touched = Touched({"table": torch.tensor([1, 4]), "bias": None})

    def step(self, scale: float = 1.0) -> float:
        rows = self.exchange.fetch(self.touched)
        (scale * (sum(leaf.sum() for leaf in rows.values()) + self.block.sum())).backward()
        self.exchange.push(self.touched, rows, self.blocks)
        return self.exchange.update()

    def everything(self) -> list[Tensor]:
        return [p.detach().clone() for p in (self.table, self.bias, self.block)]


def test_fetch_gives_the_rows_as_leaves() -> None:
    parts = Parts()
    rows = parts.exchange.fetch(parts.touched)
    assert rows["table"].tolist() == [[2.0, 3.0], [8.0, 9.0]]
    assert rows["bias"].tolist() == [0.0] * 5
    assert all(leaf.is_leaf and leaf.requires_grad for leaf in rows.values())


def test_push_updates_what_was_touched_alone() -> None:
    parts = Parts()
    norm = parts.step()
    assert norm == pytest.approx((2 * 2 + 5 + 3) ** 0.5)
    assert parts.table.tolist() == [[0, 1], [1, 2], [4, 5], [6, 7], [7, 8]]
    assert parts.bias.tolist() == [-1.0] * 5
    assert parts.block.tolist() == [-1.0] * 3


def test_a_steps_gradients_are_gone_after_it() -> None:
    parts = Parts()
    parts.step()
    parts.step()
    assert parts.block.tolist() == [-2.0] * 3
    assert parts.table.grad is None and parts.block.grad is None


def test_the_clip_is_of_rows_and_blocks_together() -> None:
    parts = Parts(clip=6.0)
    norm = parts.step(scale=10.0)
    assert norm == pytest.approx(10 * 12**0.5)
    change = -6.0 / 12**0.5
    torch.testing.assert_close(parts.block.detach(), torch.full((3,), change))
    torch.testing.assert_close(parts.bias.detach(), torch.full((5,), change))
    torch.testing.assert_close(parts.table.detach()[1], torch.tensor([2.0, 3.0]) + change)


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(clip: float, scale: float) -> None:
    parts = Parts(clip)
    before = parts.everything()
    norm = parts.step(scale)
    assert not norm < float("inf")
    assert all(torch.equal(a, b) for a, b in zip(before, parts.everything(), strict=True))
    parts.step()  # and it leaves nothing behind
    assert parts.block.isfinite().all()


def test_a_table_that_the_loss_left_out() -> None:
    parts = Parts()
    rows = parts.exchange.fetch(parts.touched)
    rows["table"].sum().backward()
    parts.exchange.push(parts.touched, rows, parts.blocks)
    parts.exchange.update()
    assert not parts.bias.any()

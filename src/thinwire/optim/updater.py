"""Applies a step's gradients to all parameters: rows row by row, blocks whole, clipped together.

R rows touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

import torch
from torch import Tensor, nn

from thinwire.optim.build import dense_optimizer, row_optimizer
from thinwire.optim.clipping import clip_gradients
from thinwire.optim.config import OptimConfig
from thinwire.optim.rows import RowOptimizer
from thinwire.touched import Touched


def take_gradients(leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of those leaves that have one; then they have none."""
    gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    for name in gradients:
        leaves[name].grad = None
    return gradients


class Updater:
    """Both optimisers, and the parameters that they update.

    Args:
        tables: parameters that are updated row by row, by name.
        blocks: dense parameters, by name.
        row_optimizer: updates the tables.
        dense_optimizer: updates the blocks.
        clip: largest global norm of a step's gradient; 0: none.
    """

    def __init__(
        self,
        tables: Mapping[str, nn.Parameter],
        blocks: Mapping[str, nn.Parameter],
        row_optimizer: RowOptimizer,
        dense_optimizer: torch.optim.Optimizer,
        clip: float = 0.0,
    ) -> None:
        self.tables, self.blocks = tables, blocks
        self.row_optimizer, self.dense_optimizer = row_optimizer, dense_optimizer
        self.clip = clip
        self._rates = [
            (group, group["lr"])
            for optimizer in (dense_optimizer, row_optimizer)
            for group in optimizer.param_groups
        ]

    @classmethod
    def of(
        cls,
        tables: Mapping[str, nn.Parameter],
        blocks: Mapping[str, nn.Parameter],
        config: OptimConfig,
    ) -> Updater:
        """With the optimisers that the settings name."""
        rows = row_optimizer(tables.values(), config)
        return cls(tables, blocks, rows, dense_optimizer(blocks.values(), config), config.clip)

    def set_rates(self, factor: float) -> None:
        """Make the learning rates those of the settings times a schedule's factor."""
        for group, rate in self._rates:
            group["lr"] = rate * factor

    def rows(self, touched: Touched) -> dict[str, Tensor]:
        """The touched rows of each table, `[R, ...]`, as leaves that collect gradients."""
        return {
            name: self.row_optimizer.rows(self.tables[name], ids).requires_grad_()
            for name, ids in touched.rows.items()
        }

    def apply(
        self, touched: Touched, rows: Mapping[str, Tensor], blocks: Mapping[str, Tensor]
    ) -> float:
        """Clip gradients, and update by them.

        Args:
            touched: which rows.
            rows: gradients of touched rows, `[R, ...]`, by table; a table not named has none.
            blocks: gradients of blocks, by name; a block not named has none.

        Returns:
            The gradient's global norm before clipping; where it is not finite, nothing was changed.
        """
        norm = float(clip_gradients([*rows.values(), *blocks.values()], self.clip))
        if isfinite(norm):
            self.update(touched, rows, blocks)
        return norm

    def update(
        self, touched: Touched, rows: Mapping[str, Tensor], blocks: Mapping[str, Tensor]
    ) -> None:
        """Update by gradients as they are; see `apply`."""
        for name, gradient in rows.items():
            self.row_optimizer.update_rows(self.tables[name], touched.rows[name], gradient)
        for name, block in self.blocks.items():
            block.grad = blocks.get(name)
        self.dense_optimizer.step()
        self.dense_optimizer.zero_grad(set_to_none=True)

    def flush(self) -> None:
        """Pay the weight decay that untouched rows owe."""
        self.row_optimizer.flush()

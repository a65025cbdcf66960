"""Applies a step's gradients to the rows of tables and to blocks, clipped by one global norm.

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
    """Take the gradients from the leaves that have one; their `grad` becomes None."""
    gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    for name in gradients:
        leaves[name].grad = None
    return gradients


class Updater:
    """Both optimisers, and the parameters that they update.

    Args:
        tables: parameters of which only touched rows are updated, by name.
        blocks: dense parameters, by name.
        row_optimizer: the optimiser of the tables.
        dense_optimizer: the optimiser of the blocks.
        clip: largest global norm of a step's gradient; 0: no clipping.
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
        """An updater with the optimisers that the settings name."""
        rows = row_optimizer(tables.values(), config)
        return cls(tables, blocks, rows, dense_optimizer(blocks.values(), config), config.clip)

    def set_rates(self, factor: float) -> None:
        """Set the learning rates to those of the settings times a schedule's factor."""
        for group, rate in self._rates:
            group["lr"] = rate * factor

    def rows(self, touched: Touched) -> dict[str, Tensor]:
        """The touched rows of each table, `[R, ...]`, as leaves that accumulate gradients."""
        return {
            name: self.row_optimizer.rows(self.tables[name], ids).requires_grad_()
            for name, ids in touched.rows.items()
        }

    def apply(
        self, touched: Touched, rows: Mapping[str, Tensor], blocks: Mapping[str, Tensor]
    ) -> float:
        """Clip the gradients and apply them.

        Args:
            touched: the touched rows.
            rows: gradients of touched rows, `[R, ...]`, by table; tables may be left out.
            blocks: gradients of blocks, by name; blocks may be left out.

        Returns:
            The global norm of the gradient before clipping. If it is not finite, no parameter was
            changed.
        """
        norm = float(clip_gradients([*rows.values(), *blocks.values()], self.clip))
        if isfinite(norm):
            self.update(touched, rows, blocks)
        return norm

    def update(
        self, touched: Touched, rows: Mapping[str, Tensor], blocks: Mapping[str, Tensor]
    ) -> None:
        """Apply the gradients without clipping; see `apply`."""
        for name, gradient in rows.items():
            self.row_optimizer.update_rows(self.tables[name], touched.rows[name], gradient)
        for name, block in self.blocks.items():
            block.grad = blocks.get(name)
        self.dense_optimizer.step()
        self.dense_optimizer.zero_grad(set_to_none=True)

    def flush(self) -> None:
        """Apply the weight decay that is pending for untouched rows."""
        self.row_optimizer.flush()

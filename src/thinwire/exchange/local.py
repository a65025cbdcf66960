"""One worker on its own: fetching is a gather, pushing is the optimisers' step.

R rows touched.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from thinwire.optim.clipping import clip_gradients
from thinwire.optim.rows import RowOptimizer
from thinwire.touched import Touched


class Local:
    """Applies gradients to the parameters at hand.

    Args:
        tables: parameters that are updated row by row, by name.
        blocks: dense parameters.
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
        clip: float,
    ) -> None:
        self.tables, self.blocks = tables, blocks
        self.row_optimizer, self.dense_optimizer = row_optimizer, dense_optimizer
        self.clip = clip

    def fetch(self, touched: Touched) -> dict[str, Tensor]:
        """The touched rows of each table, as leaves that collect gradients."""
        return {
            name: _gather(self.tables[name].detach(), ids).requires_grad_()
            for name, ids in touched.rows.items()
        }

    def push(self, touched: Touched, rows: Mapping[str, Tensor]) -> float:
        """Update every touched row and block; returns the gradient's global norm.

        A gradient that is not finite changes nothing.
        """
        gradients = {name: leaf.grad for name, leaf in rows.items() if leaf.grad is not None}
        dense = [p.grad for p in self.blocks.values() if p.grad is not None]
        norm = float(clip_gradients([*gradients.values(), *dense], self.clip))
        if norm == norm and norm != float("inf"):
            for name, gradient in gradients.items():
                self.row_optimizer.update_rows(self.tables[name], touched.rows[name], gradient)
            self.dense_optimizer.step()
        self.dense_optimizer.zero_grad(set_to_none=True)
        return norm


def _gather(table: Tensor, ids: Tensor | None) -> Tensor:
    return table.view_as(table) if ids is None else table.index_select(0, ids)

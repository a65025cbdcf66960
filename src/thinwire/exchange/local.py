"""One worker on its own: fetching is a gather, pushing is the optimisers' step.

R rows touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from thinwire.exchange.contract import Exchange, ExchangeState, nothing
from thinwire.optim.clipping import clip_gradients
from thinwire.optim.rows import RowOptimizer
from thinwire.touched import Touched
from thinwire.transport.collective import Done, Pending


class Local(Exchange):
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

    def announce(self, touched: Touched) -> None:
        """Nobody needs to know."""

    def fetch(self, touched: Touched) -> dict[str, Tensor]:
        """See `Exchange`."""
        return {
            name: self.row_optimizer.rows(self.tables[name], ids).requires_grad_()
            for name, ids in touched.rows.items()
        }

    def push(
        self,
        touched: Touched,
        rows: Mapping[str, Tensor],
        meanwhile: Callable[[], None] = nothing,
    ) -> float:
        """See `Exchange`."""
        meanwhile()
        gradients = {name: leaf.grad for name, leaf in rows.items() if leaf.grad is not None}
        return self.apply(touched, gradients)

    def apply(self, touched: Touched, gradients: Mapping[str, Tensor]) -> float:
        """Update touched rows by `gradients`, `[R, ...]`, and blocks by their `grad`.

        Returns:
            The gradient's global norm; where it is not finite, nothing was changed.
        """
        dense = [p.grad for p in self.blocks.values() if p.grad is not None]
        norm = float(clip_gradients([*gradients.values(), *dense], self.clip))
        if norm == norm and norm != float("inf"):
            for name, gradient in gradients.items():
                self.row_optimizer.update_rows(self.tables[name], touched.rows[name], gradient)
            self.dense_optimizer.step()
        self.dense_optimizer.zero_grad(set_to_none=True)
        return norm

    def total(self, numbers: Sequence[float]) -> Pending[list[float]]:
        """The numbers themselves."""
        return Done(list(numbers))

    def traffic(self) -> None:
        """None: there is nobody to send to."""

    def flush(self) -> None:
        """Pay the weight decay that untouched rows owe."""
        self.row_optimizer.flush()

    def merge_optimizers(self) -> None:
        """Nothing to do: there is one worker."""

    def state(self) -> ExchangeState:
        """Nothing: the optimisers' state is the run's."""
        return ExchangeState()

    def load_state(self, step: int, state: ExchangeState) -> None:
        """Nothing to do."""

"""What a shard holds at one moment, so that what is done to it can be undone to the bit.

Evaluating and saving want the pushes that wait to be applied, and the decay that rows owe to be
paid. Done for good, both would let the clock, by which a run evaluates, steer its numbers. So only
what this changes is kept, and is put back afterwards: the rows that wait for an update and their
entries in the optimiser's state, whole tables only where they decay, and the blocks.

R rows of a parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from thinwire.optim.decay import APPLIED
from thinwire.optim.rows import RowOptimizer


class Kept:
    """Values of tensors, of their rows, and of optimisers' states, as they are now."""

    def __init__(self) -> None:
        self._rows: list[tuple[Tensor, Tensor | None, Tensor]] = []
        self._states: list[tuple[Optimizer, Tensor, dict[str, Any]]] = []

    def keep(self, tensor: Tensor, ids_R: Tensor | None = None) -> None:
        """Keep these rows of a tensor; None: all of it."""
        values = tensor.detach()
        ids = None if ids_R is None or not tensor.ndim else ids_R.to(tensor.device)
        self._rows.append(
            (values, ids, values.clone() if ids is None else values.index_select(0, ids))
        )

    def keep_table(
        self, optimizer: RowOptimizer, table: Tensor, waiting: bool, ids_R: Tensor | None
    ) -> None:
        """Keep what an update of these rows changes, if one is waiting, and what decay changes."""
        state = optimizer.state[table]
        decays = APPLIED in state
        if waiting:
            for entry in state.values():
                self.keep(entry, ids_R)
        if decays:
            self.keep(state[APPLIED])
        if waiting or decays:
            self.keep(table, None if decays else ids_R)

    def keep_blocks(self, optimizer: Optimizer, blocks: Iterable[Tensor]) -> None:
        """Keep blocks and all that their optimiser has of them."""
        for block in blocks:
            self.keep(block)
            self._states.append((optimizer, block, _cloned(optimizer.state.get(block, {}))))

    @torch.no_grad()
    def put_back(self) -> None:
        """Let all be as it was when it was kept."""
        for tensor, ids_R, values in self._rows:
            if ids_R is None:
                tensor.copy_(values)
            else:
                tensor.index_copy_(0, ids_R, values)
        for optimizer, parameter, state in self._states:
            if state:
                optimizer.state[parameter] = state
            else:
                optimizer.state.pop(parameter, None)


def _cloned(state: Mapping[str, Any]) -> dict[str, Any]:
    return {n: v.clone() if isinstance(v, Tensor) else v for n, v in state.items()}

"""A snapshot of a shard, which restores it bit for bit.

Before an evaluation or a save, collected pushes and due weight decay are applied. If this were
permanent, the times of evaluations would influence the training. So whatever this changes is copied
before, and restored afterwards: the rows that wait for an update and their entries in the
optimiser's state, the blocks, and whole tables only where they have weight decay.

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


class Snapshot:
    """Copies of tensors, of rows and of optimisers' states."""

    def __init__(self) -> None:
        self._rows: list[tuple[Tensor, Tensor | None, Tensor]] = []
        self._states: list[tuple[Optimizer, Tensor, dict[str, Any]]] = []

    def keep(self, tensor: Tensor, ids_R: Tensor | None = None) -> None:
        """Copy these rows of a tensor; None: all rows."""
        values = tensor.detach()
        ids = None if ids_R is None or not tensor.ndim else ids_R.to(tensor.device)
        self._rows.append(
            (values, ids, values.clone() if ids is None else values.index_select(0, ids))
        )

    def keep_table(
        self, optimizer: RowOptimizer, table: Tensor, waiting: bool, ids_R: Tensor | None
    ) -> None:
        """Copy what an update of these rows changes, if one waits, and weight decay."""
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
        """Copy blocks and their optimiser's state."""
        for block in blocks:
            self.keep(block)
            self._states.append((optimizer, block, _cloned(optimizer.state.get(block, {}))))

    @torch.no_grad()
    def restore(self) -> None:
        """Restore everything that was copied."""
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

"""Which fragment of the parameters a periodic exchange sends after a step.

The rows of blocks and tables are divided into fragments by their number, modulo the number of
fragments. Blocks have `fragments` fragments, which take turns over `local_steps` steps. Tables have
`fragments * row_steps / local_steps` fragments, which take turns over `row_steps` steps. Every turn
exchanges one fragment of the blocks and one of the tables, so all turns are alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thinwire.exchange.config import ExchangeConfig


@dataclass(frozen=True)
class Fragment:
    """Every `stride`-th row, starting with row `first`."""

    first: int
    stride: int

    def __contains__(self, row: int) -> bool:
        return row % self.stride == self.first

    def num_rows(self, num_all: int) -> int:
        """The number of rows of this fragment in a tensor of `num_all` rows."""
        return len(range(self.first, num_all, self.stride))

    def shapes(self, shapes: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        """The shapes of this fragment's rows of tensors of these shapes."""
        return [(self.num_rows(num_rows), *row) for num_rows, *row in shapes]

    def ids(self, num_all: int, device: torch.device) -> Tensor:
        """The numbers of this fragment's rows in a tensor of `num_all` rows."""
        end = max(num_all, self.first)  # a short block may have no row in it
        return torch.arange(self.first, end, self.stride, device=device)

    def ids_where(self, mask_V: Tensor) -> Tensor:
        """The numbers of this fragment's rows for which the mask is true."""
        return mask_V[self.first :: self.stride].nonzero().squeeze(1) * self.stride + self.first

    def positions(self, ids: Tensor) -> Tensor:
        """The positions, within this fragment, of rows that belong to it."""
        return (ids - self.first) // self.stride


@dataclass(frozen=True)
class Turn:
    """The fragments of tables and of blocks that are exchanged at the same step."""

    rows: Fragment
    blocks: Fragment


@dataclass(frozen=True)
class Turns:
    """The order in which fragments take turns.

    Attributes:
        fragments: number of fragments of the blocks.
        local_steps: number of steps between two turns of the same row of a block.
        row_steps: number of steps between two turns of the same row of a table, a multiple of
            `local_steps`.
    """

    fragments: int
    local_steps: int
    row_steps: int

    @classmethod
    def of(cls, exchange: ExchangeConfig) -> Turns:
        """The turns that these settings ask for."""
        H = exchange.local_steps
        return cls(exchange.fragments, H, exchange.row_steps or H)

    def after(self, step: int) -> Turn | None:
        """The turn that begins when `step` steps are done; None: no turn begins then."""
        F, H = self.fragments, self.local_steps
        turns = ((fragment + 1) * H // F % H for fragment in range(F))
        fragment = next((f for f, turn in enumerate(turns) if step % H == turn), None)
        if fragment is None:
            return None
        intervals = self.row_steps // H
        interval = (step - 1) // H % intervals
        return Turn(Fragment(interval * F + fragment, intervals * F), Fragment(fragment, F))

    def all(self) -> list[Turn]:
        """The turns that exchange every row once."""
        F = self.fragments
        return [Turn(Fragment(first, F), Fragment(first, F)) for first in range(F)]

"""Whose turn it is in a periodic exchange.

Blocks and tables are cut in fragments by the number of a row. Blocks have `fragments` of them,
which take turns over `local_steps` steps. Tables have as many for each of the intervals that
`row_steps` holds: every turn takes one fragment of the blocks and one of the tables, so that turns
are alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from thinwire.exchange.config import ExchangeConfig


@dataclass(frozen=True)
class Fragment:
    """Every `stride`-th row, from row `first` on."""

    first: int
    stride: int

    def num_rows(self, num_all: int) -> int:
        """How many of so many rows are in it."""
        return len(range(self.first, num_all, self.stride))

    def ids(self, num_all: int, device: torch.device) -> Tensor:
        """The rows that are in it."""
        end = max(num_all, self.first)  # a short block may have no row in it
        return torch.arange(self.first, end, self.stride, device=device)

    def ids_where(self, mask_V: Tensor) -> Tensor:
        """Those of its rows for which the mask is true."""
        return mask_V[self.first :: self.stride].nonzero().squeeze(1) * self.stride + self.first

    def places(self, ids: Tensor) -> Tensor:
        """Where rows of it stand among all that are in it."""
        return (ids - self.first) // self.stride


@dataclass(frozen=True)
class Turn:
    """What is exchanged at once."""

    rows: Fragment
    blocks: Fragment


@dataclass(frozen=True)
class Turns:
    """The order in which fragments take turns.

    Attributes:
        fragments: of the blocks.
        local_steps: between two turns of the same row of a block.
        row_steps: between two turns of the same row of a table; a multiple of `local_steps`.
    """

    fragments: int
    local_steps: int
    row_steps: int

    @classmethod
    def of(cls, exchange: ExchangeConfig) -> Turns:
        """Those of these settings."""
        H = exchange.local_steps
        return cls(exchange.fragments, H, exchange.row_steps or H)

    def after(self, step: int) -> Turn | None:
        """The turn that comes after so many steps, if any."""
        F, H = self.fragments, self.local_steps
        turns = ((fragment + 1) * H // F % H for fragment in range(F))
        fragment = next((f for f, turn in enumerate(turns) if step % H == turn), None)
        if fragment is None:
            return None
        intervals = self.row_steps // H
        interval = (step - 1) // H % intervals
        return Turn(Fragment(interval * F + fragment, intervals * F), Fragment(fragment, F))

    def all(self) -> list[Turn]:
        """As many as exchange everything once."""
        F = self.fragments
        return [Turn(Fragment(first, F), Fragment(first, F)) for first in range(F)]

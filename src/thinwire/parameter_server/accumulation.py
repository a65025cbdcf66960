"""Collects several pushes and applies their mean as one update.

With fewer updates, a gradient is late by fewer updates: its staleness is lower (Aji, Heafield 2019,
arXiv 1906.03496). Of three methods that were tried, this one helped (LOG.md).

R rows, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

Gradient = tuple[Tensor | None, Tensor]
"""Row ids `[R]` (None: every row) and the gradients of those rows, `[R, ...]`."""


class GradientBuffer:
    """Gradients of several pushes, waiting to be applied at once."""

    def __init__(self) -> None:
        self.size = 0
        self._gradients: dict[str, list[Gradient]] = {}

    def add(self, gradients: dict[str, Gradient]) -> None:
        """Add the gradients of a push."""
        self.size += 1
        for name, gradient in gradients.items():
            self._gradients.setdefault(name, []).append(gradient)

    def copy(self) -> GradientBuffer:
        """A buffer with the same content."""
        same = GradientBuffer()
        same.size = self.size
        same._gradients = {name: list(found) for name, found in self._gradients.items()}
        return same

    def rows(self) -> dict[str, Tensor | None]:
        """For each parameter with gradients in the buffer, their rows `[R]`; None: every row."""
        return {name: _rows([ids for ids, _ in found]) for name, found in self._gradients.items()}

    def take(self) -> dict[str, Gradient]:
        """The mean gradient of the pushes, with rows merged; this empties the buffer."""
        merged = {name: _mean(found, self.size) for name, found in self._gradients.items()}
        self.size = 0
        self._gradients.clear()
        return merged


def _rows(ids: list[Tensor | None]) -> Tensor | None:
    named = [ids_R for ids_R in ids if ids_R is not None]
    return torch.cat(named).unique() if len(named) == len(ids) else None


def _mean(gradients: list[Gradient], count: int) -> Gradient:
    if count == 1:
        return gradients[0]
    whole = [values for ids, values in gradients if ids is None]
    if whole:
        total = torch.stack(whole).sum(0)
        for ids, values in gradients:
            if ids is not None:
                total.index_add_(0, ids.to(total.device), values)
        return None, total / count
    values_RD = torch.cat([values for _, values in gradients])
    ids_U, place_R = torch.cat([ids for ids, _ in gradients if ids is not None]).unique(
        return_inverse=True
    )
    merged = values_RD.new_zeros(len(ids_U), *values_RD.shape[1:])
    return ids_U, merged.index_add_(0, place_R.to(values_RD.device), values_RD) / count

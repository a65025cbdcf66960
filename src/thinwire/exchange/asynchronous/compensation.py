"""What may be done about gradients that come late: three ways, side by side.

tau is a gradient's staleness, the updates that were made between its pull and its push.

- **delay**: g + lambda g^2 (w_now - w_pulled), what a Taylor series says that the gradient has
  become meanwhile, with g^2 for the Hessian (DC-ASGD: Zheng et al. 2017, arXiv 1609.08326).
- **rate**: the update is scaled by 1 / (1 + tau) (Zhang et al. 2016, arXiv 1511.05950, divide by
  tau).
- **accumulate**: the mean of k pushes is applied at once, so that there are fewer versions to be
  late for (Aji, Heafield 2019, arXiv 1906.03496).

R rows, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

Gradient = tuple[Tensor | None, Tensor]
"""Row ids `[R]` (None: every row) and the gradients of those rows, `[R, ...]`."""


def delayed(gradient_RD: Tensor, now_RD: Tensor, pulled_RD: Tensor, strength: float) -> Tensor:
    """The gradient as it would be at the present values, to first order."""
    return gradient_RD + strength * gradient_RD.square() * (now_RD - pulled_RD)


def slowed(tau: int) -> float:
    """What an update of this staleness is scaled by."""
    return 1.0 / (1.0 + tau)


class Pile:
    """Gradients of several pushes, waiting to be applied at once."""

    def __init__(self) -> None:
        self.size = 0
        self._gradients: dict[str, list[Gradient]] = {}

    def add(self, gradients: dict[str, Gradient]) -> None:
        """Lay the gradients of a push on top."""
        self.size += 1
        for name, gradient in gradients.items():
            self._gradients.setdefault(name, []).append(gradient)

    def take(self) -> dict[str, Gradient]:
        """The mean gradient over the pushes, rows merged; the pile is empty then."""
        merged = {name: _mean(found, self.size) for name, found in self._gradients.items()}
        self.size = 0
        self._gradients.clear()
        return merged


def _mean(gradients: list[Gradient], count: int) -> Gradient:
    named = [ids for ids, _ in gradients if ids is not None]
    if len(named) < len(gradients):
        assert not named, "a parameter's rows are named in all pushes, or in none"
        return None, torch.stack([values for _, values in gradients]).sum(0) / count
    values_RD = torch.cat([values for _, values in gradients])
    ids_U, place_R = torch.cat(named).unique(return_inverse=True)
    merged = values_RD.new_zeros(len(ids_U), *values_RD.shape[1:])
    return ids_U, merged.index_add_(0, place_R.to(values_RD.device), values_RD) / count
